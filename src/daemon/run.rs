//! The life of the daemon process.
//!
//! 1. While the process has one thread and its privileges: options, the helper (forked), the API's socket.
//! 2. The privileges and most system calls go; from here on this process can neither enter namespaces nor mount, nor start
//!    a program.
//! 3. The node takes up its membership, the API is served.
//! 4. Until SIGTERM or SIGINT, or until something fails that must not: then tasks end, and with them their devices.

use super::options::{LogFormat, LogLevel, Options};
use crate::agent::{Node, NodeSettings};
use crate::api::server;
use crate::helper::{self, HelperOptions};
use crate::sys::{clock::Clock, confine, privileges};
use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use smol::channel::bounded;
use smol::future::FutureExt as _;
use tracing_subscriber::filter::LevelFilter;

/// Runs the daemon to its end. Errors are one line that says what to do.
pub fn run(options: Options) -> Result<()> {
    start_logging(&options);
    let hostname = nix::unistd::gethostname().context("cannot read this host's name")?.to_string_lossy().into_owned();
    let settings = HelperOptions {
        state_dir: options.state_dir.clone(),
        hidden: vec![options.socket.clone()],
        host_image: options.host_image,
    };
    let helper =
        helper::start(&settings).with_context(|| format!("cannot start in {}", options.state_dir.display()))?;
    raise_open_files().context("cannot raise the limit of open files")?;
    let socket = server::bind(&options.socket, options.socket_group.as_deref())?;
    if let Err(error) = privileges::lock_memory() {
        tracing::warn!("{error}: keys can get into this host's swap space");
    }
    privileges::become_network_process().context("cannot give up privileges")?;
    confine::confine().context("cannot give up system calls")?;
    // Only now: what waits for signals has a thread, and threads keep what they were started with.
    let signals = block_signals().context("cannot take over signals")?;
    let (helper, events) = helper.connect().context("cannot talk to the helper process")?;
    let (fatal, fatal_reason) = bounded(1);
    let settings = NodeSettings {
        state_dir: options.state_dir.clone(),
        hostname,
        gossip_port: options.gossip_port,
        data_path_port: options.data_path_port,
        workers: options.data_workers,
        offloads: options.offloads(),
        key_export: options.allow_key_export,
        clock: Clock::start(),
    };
    smol::block_on(async {
        let node = Node::new(settings, helper, events, fatal);
        node.resume().await?;
        if options.allow_key_export {
            tracing::warn!("--allow-key-export: root of this host may be shown the keys that protect packets");
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %options.socket.display(), "formic is ready");
        let serve = async { server::serve(socket, node.clone()).await.context("the API's socket failed") };
        let signal = async {
            let signal = next_signal(&signals).await?;
            tracing::info!(%signal, "stopping");
            Ok(())
        };
        let failure = async {
            match fatal_reason.recv().await {
                Ok(reason) => bail!(reason),
                Err(_) => std::future::pending().await,
            }
        };
        let end = failure.or(signal).or(serve).await;
        if let Err(error) = &end {
            tracing::error!("stopping: {error:#}");
        }
        node.shut_down().await;
        node.end_helper().await;
        end
    })
}

/// Each device of a task has a descriptor for each worker, more than the customary 1024. The helper was forked before:
/// it gives tasks the limit that it was started with.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

fn start_logging(options: &Options) {
    let level = match options.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    match options.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// From here on SIGTERM and SIGINT come by the descriptor, in all threads.
fn block_signals() -> Result<smol::Async<SignalFd>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Ok(smol::Async::new(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)?)
}

async fn next_signal(signals: &smol::Async<SignalFd>) -> Result<Signal> {
    loop {
        signals.readable().await?;
        if let Some(info) = signals.get_ref().read_signal()? {
            return Ok(Signal::try_from(info.ssi_signo as i32)?);
        }
    }
}
