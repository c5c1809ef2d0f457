//! What the cases share: a scratch directory, a running helper, waits with a deadline, captured output.

use formic::helper::verbs::{CommandSpec, Event, ExecId, Image, ImageName, Interface, TaskLaunch, VerbError};
use formic::helper::{self, HelperClient, HelperHandle, HelperOptions, Stdio};
use formic::sys::privileges;
use formic::sys::tun::TunDriver;
use formic::types::{Queues, TaskId};
use smol::channel::Receiver;
use smol::future::FutureExt;
use std::fs::{self, File};
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nothing here takes a tenth of it.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// A directory outside /tmp, which tasks would not see anyway.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        let build = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let private = ["/tmp", "/run"].iter().any(|place| build.starts_with(place));
        let base = if private { Path::new("/var/tmp") } else { build };
        // Short, since sockets are made in it; process ids repeat in every pid namespace.
        let unique = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let mut path = PathBuf::new();
        wait_until("a free name", || {
            path = base.join(format!("h{:x}", unique()));
            fs::create_dir(&path).is_ok()
        });
        Scratch(path)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.0.join("state, with: odd name")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) struct Fixture {
    pub(super) client: HelperClient,
    pub(super) events: Receiver<Event>,
    pub(super) helper: u32,
    pub(super) scratch: Scratch,
}

pub(super) fn options(state_dir: PathBuf) -> HelperOptions {
    HelperOptions { state_dir, hidden: Vec::new(), host_image: true }
}

pub(super) fn start_in(scratch: Scratch, options: &HelperOptions) -> Fixture {
    let handle: HelperHandle = helper::start(options).unwrap();
    privileges::become_network_process().unwrap();
    let helper = handle.pid();
    let (client, events) = handle.connect().unwrap();
    Fixture { client, events, helper, scratch }
}

pub(super) fn start() -> Fixture {
    let scratch = Scratch::new();
    let options = options(scratch.state());
    start_in(scratch, &options)
}

pub(super) fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let late = async {
        smol::Timer::after(DEADLINE).await;
        panic!("{what}: not within {DEADLINE:?}")
    };
    smol::block_on(future.or(late))
}

pub(super) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(POLL);
    }
}

pub(super) fn task_id(number: u8) -> TaskId {
    TaskId::from_random([number; 17])
}

pub(super) fn interface(name: &str, address: &str) -> Interface {
    Interface { name: name.parse().unwrap(), address: address.parse().unwrap(), mtu: 1400 }
}

pub(super) fn command(argv: &[&str]) -> CommandSpec {
    CommandSpec { argv: argv.iter().map(|text| (*text).to_owned()).collect(), ..CommandSpec::default() }
}

pub(super) fn shell(script: &str) -> CommandSpec {
    command(&["sh", "-c", script])
}

/// Standard output and error into one pipe.
pub(super) fn captured() -> (std::io::PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    (reader, [null.into(), writer.try_clone().unwrap().into(), writer.into()])
}

impl Fixture {
    pub(super) fn launch(
        &self,
        number: u8,
        image: Image,
        command: CommandSpec,
        stdio: Option<Stdio>,
    ) -> Result<u32, VerbError> {
        let task = task_id(number);
        let devices =
            within("network", self.client.create_task_network(task, Vec::new(), TunDriver::Vnet, Queues::ONE)).unwrap();
        assert!(devices.is_empty());
        let launch = TaskLaunch { task, image, command, hostname: String::new() };
        within("start", self.client.start_task(launch, stdio))
    }

    pub(super) fn launch_host(&self, number: u8, command: CommandSpec) -> TaskId {
        self.launch(number, Image::Host, command, None).unwrap();
        task_id(number)
    }

    pub(super) fn next_event(&self) -> Event {
        within("an event", self.events.recv()).unwrap()
    }

    pub(super) fn expect_exit(&self, task: TaskId) -> (i32, String) {
        match self.next_event() {
            Event::TaskExited { task: ended, code, error } if ended == task => (code, error),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn expect_exec_exit(&self, id: ExecId) -> (i32, String) {
        match self.next_event() {
            Event::ExecExited { id: ended, code, error } if ended == id => (code, error),
            other => panic!("{other:?}"),
        }
    }

    /// Executes a command to its end: exit code and output.
    pub(super) fn exec(&self, task: TaskId, command: CommandSpec) -> (i32, String) {
        let (mut reader, stdio) = captured();
        let (id, _) = within("exec", self.client.exec(task, command, Some(stdio))).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let (code, error) = self.expect_exec_exit(id);
        (code, text + &error)
    }

    pub(super) fn succeed(&self, task: TaskId, script: &str) -> String {
        let (code, text) = self.exec(task, shell(script));
        assert_eq!(code, 0, "{script}: {text}");
        text
    }

    pub(super) fn import(&self, name: &str, source: &Path) -> ImageName {
        let name: ImageName = name.parse().unwrap();
        within("import", self.client.import_image(name.clone(), source)).unwrap();
        name
    }

    /// An image of busybox with its applets, an /etc and a file.
    pub(super) fn busybox(&self, name: &str) -> (ImageName, PathBuf) {
        let dir = self.scratch.0.join(format!("source-{name}"));
        for sub in ["bin", "etc", "data"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("the package busybox-static is needed");
        for applet in ["sh", "ls", "cat", "sleep", "hostname", "ps", "rm", "mknod", "ping", "touch", "id", "mkdir"] {
            symlink("busybox", dir.join("bin").join(applet)).unwrap();
        }
        // A link that leads out of the image must not lead out of the container.
        symlink("/nowhere/resolv.conf", dir.join("etc/resolv.conf")).unwrap();
        fs::write(dir.join("data/file"), "original").unwrap();
        (self.import(name, &dir), dir)
    }
}

/// The helper ends before its directory is removed.
impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() || self.client.shut_down().is_err() {
            return;
        }
        while !matches!(within("the helper's end", self.events.recv()), Ok(Event::Gone) | Err(_)) {}
    }
}
