//! Runs ffmpeg and ffprobe on files that nobody vouches for: bounded in time, memory, CPU and output, without the
//! service's environment, and with no way to the network or to another file.

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

/// Where in a folder the file is that nobody vouches for.
pub(super) const ORIGINAL: &str = "original";

/// Options of every input: what it is is found out from its content, and it must be a file of a kind that names no
/// other files. Playlists and the like are not among them.
pub(super) const INPUT: [&str; 4] =
    ["-protocol_whitelist", "file", "-format_whitelist", "mov,matroska,avi,flv,mpegts,mpeg,asf"];

/// What a process is started through: it gets no privileges, dies with the worker, has some 3 GB of memory at most,
/// leaves no core, writes no file above 1 GB, and lets others go first. A 4K video takes a third of that memory.
const CONFINED: [&str; 12] = [
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

/// Nothing is told but errors.
const QUIET: [&str; 3] = ["-hide_banner", "-loglevel", "error"];

/// What is kept of a process's answer; that of ffprobe has a few hundred bytes.
const MAX_OUTPUT: usize = 256 * 1024;
/// What is kept of the end of its complaints.
const MAX_COMPLAINTS: usize = 2048;
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a tool did not do its work.
#[derive(Debug, Error)]
pub(super) enum ToolError {
    /// It found the input wanting.
    #[error("{tool} refused the input")]
    Refused {
        /// Which tool.
        tool: &'static str,
    },
    /// It took too long, took too much, or was killed: the input's fault, or the machine's.
    #[error("{tool} {what}")]
    Crashed {
        /// Which tool.
        tool: &'static str,
        /// What happened to it.
        what: String,
    },
    /// The machine would not let it work.
    #[error("{tool} can't work here: {what}")]
    Hindered {
        /// Which tool.
        tool: &'static str,
        /// What was in its way.
        what: String,
    },
}

/// Makes sure that the tools are there, so that a worker without them does not start.
pub(super) async fn check_tools() -> anyhow::Result<()> {
    let folder = env::temp_dir();
    for tool in ["ffmpeg", "ffprobe"] {
        run(tool, ["-version"], &folder, CHECK_TIMEOUT)
            .await
            .context("the media worker needs ffmpeg, ffprobe, and setpriv, prlimit and nice of util-linux and coreutils")?;
    }
    Ok(())
}

/// Runs a tool in a folder and returns what it wrote to standard output.
pub(super) async fn run<A: AsRef<OsStr>>(
    tool: &'static str,
    arguments: impl IntoIterator<Item = A>,
    folder: &Path,
    patience: Duration,
) -> Result<Vec<u8>, ToolError> {
    let hindered = |error: std::io::Error| ToolError::Hindered { tool, what: error.to_string() };
    let mut child = command(tool, folder).args(QUIET).args(arguments).spawn().map_err(hindered)?;
    let ended = timeout(patience, output_of(&mut child)).await;
    let Ok(ended) = ended else {
        // Dropping it would kill it as well; this also waits for its end.
        child.kill().await.map_err(hindered)?;
        return Err(ToolError::Crashed { tool, what: format!("took longer than {} s", patience.as_secs()) });
    };
    let (status, output, complaints) = ended.map_err(hindered)?;
    let complaints = String::from_utf8_lossy(&complaints);
    let Err(error) = judge(tool, status, &complaints) else { return Ok(output) };
    match &error {
        ToolError::Refused { .. } => debug!(tool, %status, %complaints, "a media tool refused an upload"),
        ToolError::Crashed { .. } | ToolError::Hindered { .. } => {
            warn!(tool, %status, %complaints, "a media tool failed");
        }
    }
    Err(error)
}

fn command(tool: &str, folder: &Path) -> Command {
    let [first, confined @ ..] = CONFINED;
    let mut command = Command::new(first);
    command
        .args(confined)
        .arg(tool)
        .current_dir(folder)
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

async fn output_of(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, complaints, status) = tokio::join!(read_head(stdout), read_tail(stderr), child.wait());
    Ok((status?, output?, complaints?))
}

/// Reads to the end, and keeps the beginning.
async fn read_head(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    read(pipe, |kept| kept.truncate(MAX_OUTPUT)).await
}

/// Reads to the end, and keeps the end.
async fn read_tail(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    read(pipe, |kept| drop(kept.drain(..kept.len().saturating_sub(MAX_COMPLAINTS)))).await
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, cut: impl Fn(&mut Vec<u8>)) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(kept) };
    let mut buffer = [0; 4096];
    loop {
        let count = pipe.read(&mut buffer).await?;
        if count == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(&buffer[..count]);
        cut(&mut kept);
    }
}

/// What the end of a process says. A tool may call it a success to have stopped where it ran out of memory.
fn judge(tool: &'static str, status: ExitStatus, complaints: &str) -> Result<(), ToolError> {
    let crashed = |what: String| Err(ToolError::Crashed { tool, what });
    let hindered = |what: &str| Err(ToolError::Hindered { tool, what: what.to_owned() });
    if let Some(signal) = status.signal() {
        return crashed(format!("was killed by signal {signal}"));
    }
    if complaints.contains("No space left on device") {
        return hindered("no space left on device");
    }
    if complaints.contains("Cannot allocate memory") {
        return crashed("ran out of memory".to_owned());
    }
    match status.code() {
        Some(0) => Ok(()),
        // Those of nice, prlimit and setpriv for a program that can't be started.
        Some(126 | 127) => hindered(complaints.trim()),
        _ => Err(ToolError::Refused { tool }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ffmpeg(arguments: &str, patience: Duration) -> Result<Vec<u8>, ToolError> {
        run("ffmpeg", arguments.split(' '), &env::temp_dir(), patience).await
    }

    #[tokio::test]
    async fn the_tools_are_installed() {
        check_tools().await.unwrap();
    }

    #[tokio::test]
    async fn a_tool_that_takes_too_long_is_killed() {
        let endless = "-re -f lavfi -i testsrc -f null -";
        let error = ffmpeg(endless, Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, ToolError::Crashed { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_tool_is_confined() {
        let tell = async |tool, argument: &str| {
            let output = command(tool, &env::temp_dir()).arg(argument).output().await.unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let limits = tell("cat", "/proc/self/limits").await;
        let limit =
            |name| limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().rev();
        assert_eq!(limit("Max address space").nth(1), Some("3221225472"));
        assert_eq!(limit("Max file size").nth(1), Some("1073741824"));
        let status = tell("cat", "/proc/self/status").await;
        assert!(status.contains("NoNewPrivs:\t1"));
        let variables = tell("env", "--").await;
        let names: Vec<_> = variables.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn what_is_not_installed_is_a_hindrance() {
        let error =
            run("ffmpeg-of-nowhere", ["-version"], &env::temp_dir(), CHECK_TIMEOUT).await.unwrap_err();
        assert!(matches!(error, ToolError::Hindered { .. }), "{error}");
    }

    #[test]
    fn a_full_disk_is_not_the_uploads_fault() {
        let judged = |status, complaints| judge("ffmpeg", ExitStatus::from_raw(status), complaints);
        let full = judged(1 << 8, "av_interleaved_write_frame(): No space left on device");
        assert!(matches!(full, Err(ToolError::Hindered { .. })));
        assert!(matches!(judged(1 << 8, "Invalid data"), Err(ToolError::Refused { .. })));
        assert!(matches!(judged(9, ""), Err(ToolError::Crashed { .. })));
        assert!(matches!(judged(0, "Cannot allocate memory"), Err(ToolError::Crashed { .. })));
        assert!(judged(0, "").is_ok());
    }
}
