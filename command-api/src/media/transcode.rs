//! Renders a playable file and a cover from an original, or rejects it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    config::Limits,
    ffmpeg::{self, INPUT_OPTIONS, ORIGINAL, ToolError},
    probe::{self, MediaInfo, PUBLISHED_FPS, PUBLISHED_SIDES, Plan, RejectReason},
};

const VIDEO: &str = "video.mp4";
const COVER: &str = "cover.jpg";
/// Threads of each decoder and encoder.
const THREADS: &str = "2";
/// Fraction of a video's frames that may fail to decode.
const MAX_ERROR_RATE: &str = "0.1";
/// How much shorter than declared a video may be: half a second, or a fiftieth.
const MAX_SHORTFALL: (Duration, u32) = (Duration::from_millis(500), 50);
const COVER_TIMEOUT: Duration = Duration::from_mins(1);

/// The published files of a video.
#[derive(Debug)]
pub(super) struct Rendition {
    /// The playable file.
    pub(super) video: PathBuf,
    /// The cover.
    pub(super) cover: PathBuf,
}

/// Error of rendering.
#[derive(Debug)]
pub(super) enum RenderError {
    /// The original can't be published.
    Rejected(RejectReason),
    /// A tool failed.
    Failed(ToolError),
}

impl From<RejectReason> for RenderError {
    fn from(reason: RejectReason) -> Self {
        Self::Rejected(reason)
    }
}

impl From<ToolError> for RenderError {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Refused { .. } => Self::Rejected(RejectReason::Damaged),
            ToolError::Crashed { .. } | ToolError::TimedOut { .. } | ToolError::Unavailable { .. } => {
                Self::Failed(error)
            }
        }
    }
}

/// Renders the original in a directory; writes the files beside it. Earlier tries have spent a part of its budget.
pub(super) async fn render(
    directory: &Path,
    limits: &Limits,
    spent: Duration,
) -> Result<Rendition, RenderError> {
    let original = probe::probe(directory, ORIGINAL).await?.ok_or(RejectReason::NotAVideo)?;
    let plan = original.plan(limits.max_length)?;
    let deadline = Instant::now() + limits.try_timeout(original.duration(), spent);
    match plan {
        Plan::Copy => match copy(directory, deadline).await {
            // A file that can't be copied may still be decodable.
            Err(ToolError::Refused { .. }) => encode(directory, deadline, limits.max_length).await?,
            copied => copied?,
        },
        Plan::Encode => encode(directory, deadline, limits.max_length).await?,
    }
    let rendered = probe::probe(directory, VIDEO).await?.ok_or(RejectReason::Damaged)?;
    check_length(&original, &rendered, limits.max_length)?;
    let cover = cover(directory).await?;
    Ok(Rendition { video: directory.join(VIDEO), cover })
}

/// Compares the rendered length with the declared one: a truncated file decodes without error up to its end.
fn check_length(
    original: &MediaInfo,
    rendered: &MediaInfo,
    max_length: Duration,
) -> Result<(), RejectReason> {
    rendered.check_duration(max_length)?;
    let declared = original.declared_duration().unwrap_or_default();
    let shortfall = declared.saturating_sub(rendered.duration().unwrap_or_default());
    if rendered.is_playable() && shortfall <= MAX_SHORTFALL.0.max(declared / MAX_SHORTFALL.1) {
        Ok(())
    } else {
        Err(RejectReason::Damaged)
    }
}

/// Copies the picture and sound streams, and decodes them to check that they are readable.
async fn copy(directory: &Path, deadline: Instant) -> Result<(), ToolError> {
    let mut arguments = input(ORIGINAL);
    arguments.extend(split_args("-map 0:V:0 -map 0:a:0? -codec copy"));
    arguments.extend(output());
    arguments.extend(split_args("-map 0:V:0 -map 0:a:0? -f null -"));
    let time_limit = deadline.saturating_duration_since(Instant::now());
    ffmpeg::run("ffmpeg", arguments, directory, time_limit).await.map(drop)
}

async fn encode(directory: &Path, deadline: Instant, max_length: Duration) -> Result<(), ToolError> {
    let mut arguments = input(ORIGINAL);
    // One second beyond the maximum suffices to detect that the video is too long.
    arguments.extend(["-t".to_owned(), (max_length.as_secs() + 1).to_string()]);
    arguments.extend(split_args("-map 0:V:0 -map 0:a:0? -filter_threads 1"));
    arguments.extend(["-vf".to_owned(), scale(), "-fpsmax".to_owned(), PUBLISHED_FPS.to_string()]);
    arguments.extend(split_args("-codec:v libx264 -preset veryfast -crf 23 -maxrate 6M -bufsize 12M"));
    arguments.extend(split_args("-profile:v high -pix_fmt yuv420p"));
    arguments.extend(split_args("-codec:a aac -b:a 128k -ac 2 -ar 44100"));
    arguments.extend(output());
    let time_limit = deadline.saturating_duration_since(Instant::now());
    ffmpeg::run("ffmpeg", arguments, directory, time_limit).await.map(drop)
}

/// Renders the frame at one second, or the first frame of a shorter video.
async fn cover(directory: &Path) -> Result<PathBuf, RenderError> {
    let path = directory.join(COVER);
    for second in ["1", "0"] {
        let mut arguments = vec!["-ss".to_owned(), second.to_owned()];
        arguments.extend(input(VIDEO));
        arguments
            .extend(split_args("-map 0:V:0 -frames:v 1 -filter_threads 1 -vf scale=w='min(iw,720)':h=-2"));
        arguments.extend(split_args("-qscale:v 3 -map_metadata -1 -codec:v mjpeg -f mjpeg"));
        arguments.push(COVER.to_owned());
        match ffmpeg::run("ffmpeg", arguments, directory, COVER_TIMEOUT).await {
            Ok(_) if is_nonempty(&path).await => return Ok(path),
            Ok(_) | Err(ToolError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RenderError::Rejected(RejectReason::Damaged))
}

async fn is_nonempty(path: &Path) -> bool {
    tokio::fs::metadata(path).await.is_ok_and(|metadata| metadata.len() > 0)
}

fn input(file: &str) -> Vec<String> {
    let mut arguments: Vec<_> = INPUT_OPTIONS.map(str::to_owned).into();
    arguments.extend(split_args("-nostdin -y"));
    arguments.extend(["-threads".to_owned(), THREADS.to_owned()]);
    arguments.extend(["-max_error_rate".to_owned(), MAX_ERROR_RATE.to_owned()]);
    arguments.extend(["-i".to_owned(), format!("file:{file}")]);
    arguments
}

/// Options of the output: an MP4 that plays while it downloads, without metadata such as the location.
fn output() -> Vec<String> {
    let mut arguments = split_args("-map_metadata -1 -map_chapters -1 -movflags +faststart");
    arguments.extend(["-threads".to_owned(), THREADS.to_owned()]);
    arguments.extend(split_args("-max_muxing_queue_size 4096 -f mp4"));
    arguments.push(VIDEO.to_owned());
    arguments
}

/// Filter that scales the picture down to the maximum sides, and to even ones. ffmpeg has rotated it upright before.
fn scale() -> String {
    let (long, short) = PUBLISHED_SIDES;
    format!(
        "scale=w='min(iw,if(gte(iw,ih),{long},{short}))':h='min(ih,if(gte(iw,ih),{short},{long}))':\
         force_original_aspect_ratio=decrease:force_divisible_by=2"
    )
}

fn split_args(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A directory with an original that ffmpeg generates.
    async fn generated(arguments: &str) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let arguments = split_args(arguments).into_iter().chain(["-y".to_owned(), ORIGINAL.to_owned()]);
        ffmpeg::run("ffmpeg", arguments, directory.path(), COVER_TIMEOUT).await.unwrap();
        directory
    }

    async fn rewritten(directory: TempDir, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
        let path = directory.path().join(ORIGINAL);
        let mut content = tokio::fs::read(&path).await.unwrap();
        change(&mut content);
        tokio::fs::write(&path, content).await.unwrap();
        directory
    }

    async fn written(content: &[u8]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        tokio::fs::write(directory.path().join(ORIGINAL), content).await.unwrap();
        directory
    }

    /// Renders the original; returns the width and height of the result.
    async fn sides(directory: &TempDir) -> (u64, u64) {
        let rendition = render(directory.path(), &Limits::default(), Duration::ZERO).await.unwrap();
        let cover = tokio::fs::read(rendition.cover).await.unwrap();
        assert_eq!(cover[..3], [0xff, 0xd8, 0xff], "the cover is a JPEG");
        let video = tokio::fs::read(rendition.video).await.unwrap();
        let at = |name: &[u8]| video.windows(4).position(|window| window == name);
        assert!(at(b"moov") < at(b"mdat"), "the video plays while it downloads");
        stream(directory, "width,height,codec_name,pix_fmt").await
    }

    async fn stream(directory: &TempDir, entries: &str) -> (u64, u64) {
        let entries = format!("stream={entries}");
        let arguments = ["-select_streams", "v", "-show_entries", entries.as_str(), "-of", "json", VIDEO];
        let answer = ffmpeg::run("ffprobe", arguments, directory.path(), COVER_TIMEOUT).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let stream = &answer["streams"][0];
        assert_eq!((&stream["codec_name"], &stream["pix_fmt"]), (&"h264".into(), &"yuv420p".into()));
        (stream["width"].as_u64().unwrap(), stream["height"].as_u64().unwrap())
    }

    async fn reason(directory: &TempDir) -> RejectReason {
        let limits = Limits { max_length: Duration::from_secs(5), ..Limits::default() };
        match render(directory.path(), &limits, Duration::ZERO).await {
            Err(RenderError::Rejected(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    const MP4: &str = "-codec:v libx264 -preset ultrafast -pix_fmt yuv420p -codec:a aac -f mp4";

    #[tokio::test]
    async fn playable_video_is_copied_without_metadata() {
        let directory = generated(&format!(
            "-f lavfi -i testsrc=size=320x240:rate=10 -f lavfi -i sine -t 2 -metadata location=+48.1+11.5/ {MP4}"
        ))
        .await;
        assert_eq!(sides(&directory).await, (320, 240));
        let copied = tokio::fs::read(directory.path().join(VIDEO)).await.unwrap();
        assert!(!copied.windows(5).any(|window| window == b"+48.1"), "the location is removed");
    }

    #[tokio::test]
    async fn large_video_is_scaled_down() {
        let directory = generated(&format!(
            "-f lavfi -i testsrc=size=2562x1443:rate=5 -t 1 {}",
            MP4.replace("yuv420p", "yuv444p")
        ))
        .await;
        assert_eq!(sides(&directory).await, (1918, 1080));
    }

    #[tokio::test]
    async fn upright_video_stays_upright() {
        let directory = generated("-f lavfi -i testsrc=size=320x240:rate=5 -t 1 -codec:v mpeg4 -f mp4").await;
        let turned = split_args("-i file:original -codec copy -metadata:s:v:0 rotate=90 -f mp4 -y turned");
        ffmpeg::run("ffmpeg", turned, directory.path(), COVER_TIMEOUT).await.unwrap();
        tokio::fs::rename(directory.path().join("turned"), directory.path().join(ORIGINAL)).await.unwrap();
        assert_eq!(sides(&directory).await, (240, 320));
    }

    #[tokio::test]
    async fn short_silent_videos_in_other_formats_are_encoded() {
        for format in [
            "-codec:v mpeg4 -f avi",
            "-codec:v libvpx -f webm",
            "-codec:v mpeg2video -f mpegts",
            "-codec:v flv1 -f flv",
        ] {
            let directory =
                generated(&format!("-f lavfi -i testsrc=size=64x48:rate=25 -t 0.4 {format}")).await;
            assert_eq!(sides(&directory).await, (64, 48), "{format}");
        }
    }

    #[tokio::test]
    async fn non_video_is_rejected() {
        let png = generated("-f lavfi -i testsrc=size=64x48 -frames:v 1 -codec:v png -f image2pipe").await;
        assert_eq!(reason(&png).await, RejectReason::NotAVideo);
        let playlist = "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n";
        let concat = "ffconcat version 1.0\nfile /etc/passwd\n";
        for content in ["Just a text.", playlist, concat, ""] {
            assert_eq!(reason(&written(content.as_bytes()).await).await, RejectReason::NotAVideo);
        }
        let sound = generated("-f lavfi -i sine -t 1 -codec:a aac -f mp4").await;
        assert_eq!(reason(&sound).await, RejectReason::NoPicture);
    }

    #[tokio::test]
    async fn damaged_video_is_rejected() {
        let faststart = format!("-f lavfi -i testsrc=size=320x240:rate=25 -t 4 -movflags +faststart {MP4}");
        let truncated =
            rewritten(generated(&faststart).await, |content| content.truncate(content.len() * 2 / 3)).await;
        assert_eq!(reason(&truncated).await, RejectReason::Damaged);
        let headless = format!("-f lavfi -i testsrc=size=320x240:rate=25 -t 4 {MP4}");
        let truncated =
            rewritten(generated(&headless).await, |content| content.truncate(content.len() * 2 / 3)).await;
        assert_eq!(reason(&truncated).await, RejectReason::NotAVideo);
        let scribbled = rewritten(generated(&faststart).await, |content| {
            let data = content.windows(4).position(|window| window == b"mdat").unwrap();
            content[data + 4..].fill(0x5a);
        });
        assert_eq!(reason(&scribbled.await).await, RejectReason::Damaged);
    }

    #[tokio::test]
    async fn spent_budget_times_out() {
        let directory =
            generated("-f lavfi -i testsrc=size=320x240:rate=25 -t 2 -codec:v mpeg4 -f avi").await;
        let limits = Limits::default();
        let spent = limits.budget(Some(Duration::from_secs(2)));
        let error = render(directory.path(), &limits, spent).await.unwrap_err();
        assert!(matches!(error, RenderError::Failed(ToolError::TimedOut { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn video_beyond_the_limits_is_rejected() {
        let long = format!("-f lavfi -i testsrc=size=64x48:rate=5 -t 6 {MP4}");
        assert_eq!(reason(&generated(&long).await).await, RejectReason::TooLong(0));
        // The container has no length.
        let endless = "-f lavfi -i testsrc=size=64x48:rate=5 -t 8 -codec:v libvpx -f webm -live 1";
        assert_eq!(reason(&generated(endless).await).await, RejectReason::TooLong(0));
        let wide = "-f lavfi -i testsrc=size=4098x64:rate=5 -t 1 -codec:v mpeg4 -f avi";
        assert_eq!(reason(&generated(wide).await).await, RejectReason::Sides);
    }
}
