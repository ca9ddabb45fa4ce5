//! Child processes that do not outlive their test.

use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use crate::wait::{DEADLINE, POLL_INTERVAL};

/// A child process; dropping it kills it.
pub struct ChildProcess(Child);

impl ChildProcess {
    /// Starts a program without standard input.
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The standard output, if the command pipes it and no earlier call took it.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// The exit status, once the process has exited.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Sends SIGKILL and waits for the exit.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the exit, until [`DEADLINE`].
    pub async fn terminate(mut self) -> ExitStatus {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let exited = async {
            loop {
                if let Some(status) = self.exit_status() {
                    return status;
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(DEADLINE, exited).await.expect("the process exits after SIGTERM")
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
