//! Runs ffmpeg and ffprobe on untrusted files: with bounded time, memory, CPU and output, without the service's
//! environment, and without access to the network or other files.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};
use tracing::{debug, warn};

/// Name of the untrusted file in its directory.
pub(super) const ORIGINAL: &str = "original";

/// Options of every input: a local file, in a container format that can't refer to other files (unlike playlists).
pub(super) const INPUT_OPTIONS: [&str; 4] =
    ["-protocol_whitelist", "file", "-format_whitelist", "mov,matroska,avi,flv,mpegts,mpeg,asf"];

/// Command prefix that confines a process: no new privileges, killed with the worker, at most 3 GiB of memory, no core
/// dump, no file above 1 GiB, low priority. A 4K video takes a third of that memory.
const SANDBOX: [&str; 12] = [
    "setpriv",
    "--no-new-privs",
    "--pdeathsig=KILL",
    "--",
    "prlimit",
    "--as=3221225472",
    "--core=0",
    "--fsize=1073741824",
    "--",
    "nice",
    "-n",
    "10",
];

/// Options that limit stderr to errors.
const LOG_OPTIONS: [&str; 3] = ["-hide_banner", "-loglevel", "error"];

/// Bytes kept of the start of stdout; ffprobe writes a few hundred.
const MAX_STDOUT: usize = 256 * 1024;
/// Bytes kept of the end of stderr.
const MAX_STDERR: usize = 2048;
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Failure of a tool.
#[derive(Debug, Error)]
pub(super) enum ToolError {
    /// The tool reports that the input is invalid.
    #[error("{tool} refused the input")]
    Refused { tool: &'static str },
    /// The tool ran out of memory, or was killed; either the input or the machine is the cause.
    #[error("{tool} {cause}")]
    Crashed { tool: &'static str, cause: String },
    /// The tool was killed at its time limit; either the input or the machine is the cause.
    #[error("{tool} took longer than {} s", limit.as_secs())]
    TimedOut { tool: &'static str, limit: Duration },
    /// The tool can't run on this machine.
    #[error("{tool} is unavailable: {cause}")]
    Unavailable { tool: &'static str, cause: String },
}

/// Checks that the tools are installed, so that a worker without them fails at startup.
pub(super) async fn check_tools() -> anyhow::Result<()> {
    let directory = env::temp_dir();
    for tool in ["ffmpeg", "ffprobe"] {
        run(tool, ["-version"], &directory, CHECK_TIMEOUT)
            .await
            .context("the media worker needs ffmpeg, ffprobe, and setpriv, prlimit and nice of util-linux and coreutils")?;
    }
    Ok(())
}

/// Runs a tool in a directory; returns its stdout.
pub(super) async fn run<A: AsRef<OsStr>>(
    tool: &'static str,
    arguments: impl IntoIterator<Item = A>,
    directory: &Path,
    time_limit: Duration,
) -> Result<Vec<u8>, ToolError> {
    let unavailable = |error: std::io::Error| ToolError::Unavailable { tool, cause: error.to_string() };
    let mut child =
        command(tool, directory).args(LOG_OPTIONS).args(arguments).spawn().map_err(unavailable)?;
    let result = timeout(time_limit, wait_with_output(&mut child)).await;
    let Ok(result) = result else {
        // Dropping the child would kill it too, but not wait for its exit.
        child.kill().await.map_err(unavailable)?;
        return Err(ToolError::TimedOut { tool, limit: time_limit });
    };
    let (status, stdout, stderr) = result.map_err(unavailable)?;
    let stderr = String::from_utf8_lossy(&stderr);
    let Err(error) = classify_exit(tool, status, &stderr) else { return Ok(stdout) };
    match &error {
        ToolError::Refused { .. } => debug!(tool, %status, %stderr, "media tool refused input"),
        ToolError::Crashed { .. } | ToolError::TimedOut { .. } | ToolError::Unavailable { .. } => {
            warn!(tool, %status, %stderr, "media tool failed");
        }
    }
    Err(error)
}

fn command(tool: &str, directory: &Path) -> Command {
    let [first, confined @ ..] = SANDBOX;
    let mut command = Command::new(first);
    command
        .args(confined)
        .arg(tool)
        .current_dir(directory)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

async fn wait_with_output(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr, status) = tokio::join!(read_head(stdout), read_tail(stderr), child.wait());
    Ok((status?, stdout?, stderr?))
}

/// Reads to the end; keeps the start.
async fn read_head(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    read(pipe, |kept| kept.truncate(MAX_STDOUT)).await
}

/// Reads to the end; keeps the end.
async fn read_tail(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    read(pipe, |kept| drop(kept.drain(..kept.len().saturating_sub(MAX_STDERR)))).await
}

async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    shorten: impl Fn(&mut Vec<u8>),
) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(kept) };
    let mut buffer = [0; 4096];
    loop {
        let count = pipe.read(&mut buffer).await?;
        if count == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(&buffer[..count]);
        shorten(&mut kept);
    }
}

/// Classifies a process's exit. Exit code 0 is not always success: a tool may stop early when it runs out of memory.
fn classify_exit(tool: &'static str, status: ExitStatus, stderr: &str) -> Result<(), ToolError> {
    let crashed = |cause: String| Err(ToolError::Crashed { tool, cause });
    let unavailable = |cause: &str| Err(ToolError::Unavailable { tool, cause: cause.to_owned() });
    if let Some(signal) = status.signal() {
        return crashed(format!("was killed by signal {signal}"));
    }
    if stderr.contains("No space left on device") {
        return unavailable("no space left on device");
    }
    if stderr.contains("Cannot allocate memory") {
        return crashed("ran out of memory".to_owned());
    }
    match status.code() {
        Some(0) => Ok(()),
        // Codes of nice, prlimit and setpriv for a program that can't be started.
        Some(126 | 127) => unavailable(stderr.trim()),
        _ => Err(ToolError::Refused { tool }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ffmpeg(arguments: &str, time_limit: Duration) -> Result<Vec<u8>, ToolError> {
        run("ffmpeg", arguments.split(' '), &env::temp_dir(), time_limit).await
    }

    #[tokio::test]
    async fn tools_are_installed() {
        check_tools().await.unwrap();
    }

    #[tokio::test]
    async fn tool_is_killed_at_its_time_limit() {
        let endless = "-re -f lavfi -i testsrc -f null -";
        let error = ffmpeg(endless, Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, ToolError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn tool_runs_in_the_sandbox() {
        let stdout_of = async |tool, argument: &str| {
            let output = command(tool, &env::temp_dir()).arg(argument).output().await.unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let limits = stdout_of("cat", "/proc/self/limits").await;
        let limit =
            |name| limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().rev();
        assert_eq!(limit("Max address space").nth(1), Some("3221225472"));
        assert_eq!(limit("Max file size").nth(1), Some("1073741824"));
        let status = stdout_of("cat", "/proc/self/status").await;
        assert!(status.contains("NoNewPrivs:\t1"));
        let variables = stdout_of("env", "--").await;
        let names: Vec<_> = variables.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn missing_tool_is_unavailable() {
        let error =
            run("ffmpeg-of-nowhere", ["-version"], &env::temp_dir(), CHECK_TIMEOUT).await.unwrap_err();
        assert!(matches!(error, ToolError::Unavailable { .. }), "{error}");
    }

    #[test]
    fn exits_are_classified_by_signal_stderr_and_code() {
        let classified = |status, stderr| classify_exit("ffmpeg", ExitStatus::from_raw(status), stderr);
        let full = classified(1 << 8, "av_interleaved_write_frame(): No space left on device");
        assert!(matches!(full, Err(ToolError::Unavailable { .. })));
        assert!(matches!(classified(1 << 8, "Invalid data"), Err(ToolError::Refused { .. })));
        assert!(matches!(classified(9, ""), Err(ToolError::Crashed { .. })));
        assert!(matches!(classified(0, "Cannot allocate memory"), Err(ToolError::Crashed { .. })));
        assert!(classified(0, "").is_ok());
    }
}
