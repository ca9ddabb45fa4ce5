//! Makes a playable file and a cover of an original, or finds out why that can't be.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Limits,
    ffmpeg::{self, INPUT, ORIGINAL, ToolError},
    probe::{self, Facts, PUBLISHED_FPS, PUBLISHED_SIDES, Plan, Reason},
};

const VIDEO: &str = "video.mp4";
const COVER: &str = "cover.jpg";
/// Threads of each decoder and encoder.
const THREADS: &str = "2";
/// The part of a video that may be unreadable.
const MAX_ERROR_RATE: &str = "0.1";
/// How much shorter than it says a video may be: half a second, or a fiftieth.
const SHORTFALL: (Duration, u32) = (Duration::from_millis(500), 50);
/// How long making a cover may take.
const COVER_TIMEOUT: Duration = Duration::from_secs(60);

/// What is published of a video.
#[derive(Debug)]
pub(super) struct Rendition {
    /// The playable file.
    pub(super) video: PathBuf,
    /// The cover.
    pub(super) cover: PathBuf,
}

/// Why there is no rendition.
#[derive(Debug)]
pub(super) enum Unmade {
    /// The original can't be published.
    Rejected(Reason),
    /// A tool did not do its work.
    Failed(ToolError),
}

impl From<Reason> for Unmade {
    fn from(reason: Reason) -> Self {
        Self::Rejected(reason)
    }
}

impl From<ToolError> for Unmade {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Refused { .. } => Self::Rejected(Reason::Damaged),
            ToolError::Crashed { .. } | ToolError::Hindered { .. } => Self::Failed(error),
        }
    }
}

/// Makes a rendition of the original in a folder, beside it.
pub(super) async fn render(folder: &Path, limits: Limits) -> Result<Rendition, Unmade> {
    let original = probe::look_at(folder, ORIGINAL).await?.ok_or(Reason::NotAVideo)?;
    let patience = limits.patience + 4 * original.duration().unwrap_or(limits.longest).min(limits.longest);
    match original.plan(limits.longest)? {
        Plan::Copy => match copy(folder, patience).await {
            // What can't be copied as it is may still be readable.
            Err(ToolError::Refused { .. }) => encode(folder, patience, limits.longest).await?,
            copied => copied?,
        },
        Plan::Encode => encode(folder, patience, limits.longest).await?,
    }
    let made = probe::look_at(folder, VIDEO).await?.ok_or(Reason::Damaged)?;
    check(&original, &made, limits.longest)?;
    let cover = cover(folder).await?;
    Ok(Rendition { video: folder.join(VIDEO), cover })
}

/// A truncated file reads fine up to where it ends.
fn check(original: &Facts, made: &Facts, longest: Duration) -> Result<(), Reason> {
    made.check_duration(longest)?;
    let declared = original.declared_duration().unwrap_or_default();
    let shortfall = declared.saturating_sub(made.duration().unwrap_or_default());
    if made.plays() && shortfall <= SHORTFALL.0.max(declared / SHORTFALL.1) {
        Ok(())
    } else {
        Err(Reason::Damaged)
    }
}

/// Takes picture and sound over as they are, and decodes all of it besides, to be sure that it can be.
async fn copy(folder: &Path, patience: Duration) -> Result<(), ToolError> {
    let mut arguments = input(ORIGINAL);
    arguments.extend(words("-map 0:V:0 -map 0:a:0? -codec copy"));
    arguments.extend(output());
    arguments.extend(words("-map 0:V:0 -map 0:a:0? -f null -"));
    ffmpeg::run("ffmpeg", arguments, folder, patience).await.map(drop)
}

async fn encode(folder: &Path, patience: Duration, longest: Duration) -> Result<(), ToolError> {
    let mut arguments = input(ORIGINAL);
    // One second more than is allowed is enough to see that it is too long.
    arguments.extend(["-t".to_owned(), (longest.as_secs() + 1).to_string()]);
    arguments.extend(words("-map 0:V:0 -map 0:a:0? -filter_threads 1"));
    arguments.extend(["-vf".to_owned(), scale(), "-fpsmax".to_owned(), PUBLISHED_FPS.to_string()]);
    arguments.extend(words("-codec:v libx264 -preset veryfast -crf 23 -maxrate 6M -bufsize 12M"));
    arguments.extend(words("-profile:v high -pix_fmt yuv420p"));
    arguments.extend(words("-codec:a aac -b:a 128k -ac 2 -ar 44100"));
    arguments.extend(output());
    ffmpeg::run("ffmpeg", arguments, folder, patience).await.map(drop)
}

/// Takes the picture at one second, or the first of a shorter video.
async fn cover(folder: &Path) -> Result<PathBuf, Unmade> {
    let path = folder.join(COVER);
    for second in ["1", "0"] {
        let mut arguments = vec!["-ss".to_owned(), second.to_owned()];
        arguments.extend(input(VIDEO));
        arguments.extend(words("-map 0:V:0 -frames:v 1 -filter_threads 1 -vf scale=w='min(iw,720)':h=-2"));
        arguments.extend(words("-qscale:v 3 -map_metadata -1 -codec:v mjpeg -f mjpeg"));
        arguments.push(COVER.to_owned());
        match ffmpeg::run("ffmpeg", arguments, folder, COVER_TIMEOUT).await {
            Ok(_) if is_filled(&path).await => return Ok(path),
            Ok(_) | Err(ToolError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Unmade::Rejected(Reason::Damaged))
}

async fn is_filled(path: &Path) -> bool {
    tokio::fs::metadata(path).await.is_ok_and(|metadata| metadata.len() > 0)
}

fn input(file: &str) -> Vec<String> {
    let mut arguments: Vec<_> = INPUT.map(str::to_owned).into();
    arguments.extend(words("-nostdin -y"));
    arguments.extend(["-threads".to_owned(), THREADS.to_owned()]);
    arguments.extend(["-max_error_rate".to_owned(), MAX_ERROR_RATE.to_owned()]);
    arguments.extend(["-i".to_owned(), format!("file:{file}")]);
    arguments
}

/// An MP4 that can be played while it is loaded, without what a phone writes into it: where it was taken, for one.
fn output() -> Vec<String> {
    let mut arguments = words("-map_metadata -1 -map_chapters -1 -movflags +faststart");
    arguments.extend(["-threads".to_owned(), THREADS.to_owned()]);
    arguments.extend(words("-max_muxing_queue_size 4096 -f mp4"));
    arguments.push(VIDEO.to_owned());
    arguments
}

/// Makes the picture no larger than is published, with sides that the encoder can halve. It stands upright by then.
fn scale() -> String {
    let (long, short) = PUBLISHED_SIDES;
    format!(
        "scale=w='min(iw,if(gte(iw,ih),{long},{short}))':h='min(ih,if(gte(iw,ih),{short},{long}))':\
         force_original_aspect_ratio=decrease:force_divisible_by=2"
    )
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}
