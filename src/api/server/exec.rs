//! `exec`: make one, start it on a connection that then carries its streams, ask how it ended.
//!
//! The connection after `101`: what the client sends is standard input (its end of file closes it); what it gets are
//! frames of 8 bytes (stream 1 or 2, three zeros, the length as a big-endian u32) and as many bytes of output.
//!
//! Invariant: the exit code is known before the stream ends, because clients ask for it then.

use super::error::ApiError;
use super::request::Request;
use super::{Context, Job, containers, random, respond, schema, services};
use crate::agent::{ExecIo, ExecRequest};
use crate::api::types as api;
use crate::api::upgrade::socket_of;
use crate::types::{Id, TaskId, TaskState};
use hyper::StatusCode;
use hyper::upgrade::OnUpgrade;
use smol::Async;
use smol::channel::Receiver;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Execs remembered at most: each is a few hundred bytes, and clients ask for the exit code at once.
pub(super) const MAX_EXECS: usize = 1024;

/// Bytes of command and environment at most: they cross the helper's socket in one message.
const MAX_EXEC_BYTES: usize = 64 << 10;

/// Bytes read from a pipe at once: the capacity of a pipe.
const COPY_BYTES: usize = 64 << 10;

/// How long output is still awaited once the command has ended: something it left in the background may hold the
/// pipe open for ever.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// How long input is still read once the stream has ended.
const LAST_INPUT: Duration = Duration::from_secs(1);

/// The exit code of a command that could not be run, as shells and Docker have it.
const CANNOT_RUN: i32 = 126;

#[derive(Clone)]
struct Exec {
    task: TaskId,
    wanted: api::ExecCreate,
    started: bool,
    exit_code: Option<i32>,
}

/// The execs of this daemon.
#[derive(Default)]
pub(super) struct Registry {
    execs: Mutex<Execs>,
}

#[derive(Default)]
struct Execs {
    /// The number of the newest.
    newest: u64,
    /// Each with its id, by numbers that grow: the oldest come first.
    by_age: BTreeMap<u64, (String, Exec)>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Execs> {
        // Nothing panics while it is held, and the table is whole at any moment.
        self.execs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn add(&self, id: String, exec: Exec) -> Result<(), ApiError> {
        let mut guard = self.lock();
        let Execs { newest, by_age } = &mut *guard;
        if by_age.len() >= MAX_EXECS {
            let idle =
                by_age.iter().find(|(_, (_, exec))| !exec.started || exec.exit_code.is_some()).map(|(key, _)| *key);
            let Some(key) = idle else {
                return Err(ApiError::unavailable(format!("{MAX_EXECS} commands are running already")));
            };
            by_age.remove(&key);
        }
        *newest += 1;
        by_age.insert(*newest, (id, exec));
        Ok(())
    }

    fn with<T>(&self, id: &str, visit: impl FnOnce(&mut Exec) -> T) -> Result<T, ApiError> {
        let mut guard = self.lock();
        let found = guard.by_age.values_mut().find(|(key, _)| key == id);
        found.map(|(_, exec)| visit(exec)).ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }

    fn finish(&self, id: &str, code: i32) {
        // It can only be missing if it was never started.
        let _ = self.with(id, |exec| exec.exit_code = Some(code));
    }
}

pub(super) fn create(context: &Context, request: &Request, wanted: &str) -> Result<respond::Response, ApiError> {
    let task = containers::find(&*context.backend, wanted)?;
    let command: api::ExecCreate = request.json(&schema::EXEC_CREATE)?;
    check(&command)?;
    if task.status.state != TaskState::Running {
        return Err(ApiError::conflict(format!("container {wanted} is not running")));
    }
    let id = Id::from_random(random()?).to_string();
    let exec = Exec { task: task.assignment.id, wanted: command, started: false, exit_code: None };
    context.execs.add(id.clone(), exec)?;
    Ok(respond::json_with(StatusCode::CREATED, &api::Created { id, warnings: Vec::new() }))
}

fn check(command: &api::ExecCreate) -> Result<(), ApiError> {
    if command.cmd.first().is_none_or(String::is_empty) {
        return Err(ApiError::bad_request("no exec command specified"));
    }
    services::check_environment(&command.env)?;
    let parts = command.cmd.iter().chain(&command.env);
    if parts.clone().any(|part| part.contains('\0')) {
        return Err(ApiError::bad_request("command and environment must not contain a NUL character"));
    }
    let bytes: usize = parts.map(|part| part.len() + 1).sum();
    if bytes > MAX_EXEC_BYTES {
        return Err(ApiError::bad_request(format!(
            "command and environment have {bytes} bytes, more than {MAX_EXEC_BYTES}"
        )));
    }
    Ok(())
}

pub(super) fn inspect(context: &Context, id: &str) -> Result<respond::Response, ApiError> {
    context.execs.with(id, |exec| {
        let mut command = exec.wanted.cmd.iter().cloned();
        respond::json(&api::ExecInspect {
            id: id.to_owned(),
            running: exec.started && exec.exit_code.is_none(),
            exit_code: exec.exit_code,
            open_stdin: exec.wanted.attach_stdin,
            open_stdout: exec.wanted.attach_stdout,
            open_stderr: exec.wanted.attach_stderr,
            container_id: exec.task.to_string(),
            pid: 0,
            process_config: api::ProcessConfig {
                entrypoint: command.next().unwrap_or_default(),
                arguments: command.collect(),
                ..api::ProcessConfig::default()
            },
        })
    })
}

/// Starts an exec; its streams take the connection over, unless it is detached.
pub(super) fn start(
    context: &Arc<Context>,
    request: &Request,
    id: &str,
    upgrade: Option<OnUpgrade>,
) -> Result<respond::Response, ApiError> {
    let wanted: api::ExecStart = request.json(&schema::EXEC_START)?;
    if !wanted.detach && upgrade.is_none() {
        return Err(ApiError::bad_request(
            "the streams of an exec need a connection that is upgraded: send Upgrade: tcp",
        ));
    }
    let exec = context.execs.with(id, |exec| {
        if exec.started {
            return Err(ApiError::conflict(format!("exec {id} was started already")));
        }
        exec.started = true;
        Ok(exec.clone())
    })??;
    let run = Run { context: context.clone(), id: id.to_owned(), exec };
    let (job, response): (Job, _) = match upgrade.filter(|_| !wanted.detach) {
        Some(upgrade) => (Box::pin(run.attached(upgrade)), respond::upgraded()),
        None => (Box::pin(run.detached()), respond::empty(StatusCode::OK)),
    };
    match context.jobs.try_send(job) {
        Ok(()) => Ok(response),
        Err(_) => {
            context.execs.finish(id, CANNOT_RUN);
            Err(ApiError::unavailable("too many commands are being started"))
        }
    }
}

/// One exec being run.
struct Run {
    context: Arc<Context>,
    id: String,
    exec: Exec,
}

impl Run {
    fn request(&self) -> ExecRequest {
        let api::ExecCreate { cmd, env, .. } = self.exec.wanted.clone();
        ExecRequest { task: self.exec.task, command: cmd, env }
    }

    async fn detached(self) {
        let code = match null_streams() {
            Ok(io) => self.outcome(io).await.unwrap_or(CANNOT_RUN),
            Err(_) => CANNOT_RUN,
        };
        self.context.execs.finish(&self.id, code);
    }

    async fn outcome(&self, io: ExecIo) -> Result<i32, String> {
        self.context.backend.exec(self.request(), io).await.map_err(|error| error.to_string())
    }

    async fn attached(self, upgrade: OnUpgrade) {
        let Some((socket, early)) = upgrade.await.ok().and_then(socket_of) else {
            self.context.execs.finish(&self.id, CANNOT_RUN);
            return;
        };
        let output = Output::new(&socket);
        let code = match self.streams() {
            Ok((streams, io)) => self.conduct(streams, io, &socket, &early, &output).await,
            Err(error) => Err(format!("cannot make pipes: {error}")),
        };
        if let Err(reason) = &code {
            // The client may be gone; the code says it too.
            let _ = write_frame(&output, STDERR, format!("{reason}\n").as_bytes()).await;
        }
        self.context.execs.finish(&self.id, code.unwrap_or(CANNOT_RUN));
        hang_up(&socket).await;
    }

    /// Moves the streams until the command has ended and said its last.
    async fn conduct(
        &self,
        streams: Streams,
        io: ExecIo,
        socket: &Async<UnixStream>,
        early: &[u8],
        output: &Output<'_>,
    ) -> Result<i32, String> {
        let Streams { stdin, stdout, stderr } = streams;
        // Closed when the command has ended.
        let (running, ended) = smol::channel::bounded::<()>(1);
        let run = async {
            let code = self.outcome(io).await;
            drop(running);
            code
        };
        let copies = smol::future::zip(
            copy_output(stdout, STDOUT, self.exec.wanted.attach_stdout, output, &ended),
            copy_output(stderr, STDERR, self.exec.wanted.attach_stderr, output, &ended),
        );
        let work = async { smol::future::zip(run, copies).await.0 };
        let input = async {
            forward_input(early, socket, stdin).await;
            std::future::pending().await
        };
        smol::future::or(work, input).await
    }

    fn streams(&self) -> std::io::Result<(Streams, ExecIo)> {
        let (stdin_read, stdin_write) = std::io::pipe()?;
        let (stdout_read, stdout_write) = std::io::pipe()?;
        let (stderr_read, stderr_write) = std::io::pipe()?;
        let stdin = self.exec.wanted.attach_stdin.then(|| asynchronous(stdin_write.into())).transpose()?;
        let streams =
            Streams { stdin, stdout: asynchronous(stdout_read.into())?, stderr: asynchronous(stderr_read.into())? };
        let io = ExecIo { stdin: stdin_read.into(), stdout: stdout_write.into(), stderr: stderr_write.into() };
        Ok((streams, io))
    }
}

type Pipe = Async<File>;
type Output<'a> = smol::lock::Mutex<&'a Async<UnixStream>>;

/// Our ends of the pipes.
struct Streams {
    /// `None` if standard input is not attached: it is at its end from the start.
    stdin: Option<Pipe>,
    stdout: Pipe,
    stderr: Pipe,
}

const STDOUT: u8 = 1;
const STDERR: u8 = 2;

fn asynchronous(end: OwnedFd) -> std::io::Result<Pipe> {
    Async::new(File::from(end))
}

fn null_streams() -> std::io::Result<ExecIo> {
    let open = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    Ok(ExecIo { stdin: open()?, stdout: open()?, stderr: open()? })
}

/// Copies what the client sends until its end of file or until the command does not read any more.
async fn forward_input(early: &[u8], mut socket: &Async<UnixStream>, stdin: Option<Pipe>) {
    let Some(mut stdin) = stdin else { return };
    if stdin.write_all(early).await.is_err() {
        return;
    }
    let mut buffer = vec![0; COPY_BYTES];
    while let Ok(length @ 1..) = socket.read(&mut buffer).await {
        let Some(read) = buffer.get(..length) else { return };
        if stdin.write_all(read).await.is_err() {
            return;
        }
    }
}

/// Ends the stream. What the client still sends is read away for a moment: closing a socket with unread input would
/// make the client see an error instead of the end.
pub(super) async fn hang_up(mut socket: &Async<UnixStream>) {
    if socket.get_ref().shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut buffer = vec![0; COPY_BYTES];
    let drain = async { while let Ok(1..) = socket.read(&mut buffer).await {} };
    let enough = async {
        smol::Timer::after(LAST_INPUT).await;
    };
    smol::future::or(drain, enough).await;
}

/// Copies one stream of output until its end. When the client is gone the pipe is closed, so that the command learns
/// of it as it would in a shell.
async fn copy_output(mut pipe: Pipe, stream: u8, attached: bool, output: &Output<'_>, ended: &Receiver<()>) {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let silence = async {
            // Nothing is ever sent: this returns when the command has ended.
            let _ = ended.recv().await;
            smol::Timer::after(LAST_OUTPUT).await;
            Ok(0)
        };
        let Ok(length @ 1..) = smol::future::or(pipe.read(&mut buffer), silence).await else { return };
        let Some(read) = buffer.get(..length) else { return };
        if attached && write_frame(output, stream, read).await.is_err() {
            return;
        }
    }
}

async fn write_frame(output: &Output<'_>, stream: u8, bytes: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?.to_be_bytes();
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend_from_slice(&[stream, 0, 0, 0]);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(bytes);
    output.lock().await.write_all(&frame).await
}
