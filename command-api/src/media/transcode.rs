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
const COVER_TIMEOUT: Duration = Duration::from_mins(1);

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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A folder with an original that ffmpeg makes.
    async fn made(arguments: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let arguments = words(arguments).into_iter().chain(["-y".to_owned(), ORIGINAL.to_owned()]);
        ffmpeg::run("ffmpeg", arguments, folder.path(), COVER_TIMEOUT).await.unwrap();
        folder
    }

    async fn rewritten(folder: TempDir, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
        let path = folder.path().join(ORIGINAL);
        let mut content = tokio::fs::read(&path).await.unwrap();
        change(&mut content);
        tokio::fs::write(&path, content).await.unwrap();
        folder
    }

    async fn written(content: &[u8]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        tokio::fs::write(folder.path().join(ORIGINAL), content).await.unwrap();
        folder
    }

    /// Renders it, and tells the width and height of the result.
    async fn sides(folder: &TempDir) -> (u64, u64) {
        let rendition = render(folder.path(), Limits::default()).await.unwrap();
        let cover = tokio::fs::read(rendition.cover).await.unwrap();
        assert_eq!(cover[..3], [0xff, 0xd8, 0xff], "the cover is a JPEG");
        let video = tokio::fs::read(rendition.video).await.unwrap();
        let at = |name: &[u8]| video.windows(4).position(|window| window == name);
        assert!(at(b"moov") < at(b"mdat"), "it can be played while it is loaded");
        stream(folder, "width,height,codec_name,pix_fmt").await
    }

    async fn stream(folder: &TempDir, entries: &str) -> (u64, u64) {
        let entries = format!("stream={entries}");
        let arguments = ["-select_streams", "v", "-show_entries", entries.as_str(), "-of", "json", VIDEO];
        let answer = ffmpeg::run("ffprobe", arguments, folder.path(), COVER_TIMEOUT).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let stream = &answer["streams"][0];
        assert_eq!((&stream["codec_name"], &stream["pix_fmt"]), (&"h264".into(), &"yuv420p".into()));
        (stream["width"].as_u64().unwrap(), stream["height"].as_u64().unwrap())
    }

    async fn reason(folder: &TempDir) -> Reason {
        let limits = Limits { longest: Duration::from_secs(5), ..Limits::default() };
        match render(folder.path(), limits).await {
            Err(Unmade::Rejected(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    const MP4: &str = "-codec:v libx264 -preset ultrafast -pix_fmt yuv420p -codec:a aac -f mp4";

    #[tokio::test]
    async fn what_is_playable_is_taken_over_as_it_is() {
        let folder = made(&format!(
            "-f lavfi -i testsrc=size=320x240:rate=10 -f lavfi -i sine -t 2 -metadata location=+48.1+11.5/ {MP4}"
        ))
        .await;
        assert_eq!(sides(&folder).await, (320, 240));
        let copied = tokio::fs::read(folder.path().join(VIDEO)).await.unwrap();
        assert!(
            !copied.windows(5).any(|window| window == b"+48.1"),
            "where it was taken is nobody's business"
        );
    }

    #[tokio::test]
    async fn what_is_too_large_is_made_smaller() {
        let folder = made(&format!(
            "-f lavfi -i testsrc=size=2562x1443:rate=5 -t 1 {}",
            MP4.replace("yuv420p", "yuv444p")
        ))
        .await;
        assert_eq!(sides(&folder).await, (1918, 1080));
    }

    #[tokio::test]
    async fn a_video_that_was_filmed_upright_stays_upright() {
        let folder = made("-f lavfi -i testsrc=size=320x240:rate=5 -t 1 -codec:v mpeg4 -f mp4").await;
        let turned = words("-i file:original -codec copy -metadata:s:v:0 rotate=90 -f mp4 -y turned");
        ffmpeg::run("ffmpeg", turned, folder.path(), COVER_TIMEOUT).await.unwrap();
        tokio::fs::rename(folder.path().join("turned"), folder.path().join(ORIGINAL)).await.unwrap();
        assert_eq!(sides(&folder).await, (240, 320));
    }

    #[tokio::test]
    async fn other_formats_without_sound_and_shorter_than_a_second_are_fine() {
        for format in [
            "-codec:v mpeg4 -f avi",
            "-codec:v libvpx -f webm",
            "-codec:v mpeg2video -f mpegts",
            "-codec:v flv1 -f flv",
        ] {
            let folder = made(&format!("-f lavfi -i testsrc=size=64x48:rate=25 -t 0.4 {format}")).await;
            assert_eq!(sides(&folder).await, (64, 48), "{format}");
        }
    }

    #[tokio::test]
    async fn what_is_no_video_is_rejected() {
        let png = made("-f lavfi -i testsrc=size=64x48 -frames:v 1 -codec:v png -f image2pipe").await;
        assert_eq!(reason(&png).await, Reason::NotAVideo);
        let playlist = "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n";
        let concat = "ffconcat version 1.0\nfile /etc/passwd\n";
        for content in ["Just a text.", playlist, concat, ""] {
            assert_eq!(reason(&written(content.as_bytes()).await).await, Reason::NotAVideo);
        }
        let sound = made("-f lavfi -i sine -t 1 -codec:a aac -f mp4").await;
        assert_eq!(reason(&sound).await, Reason::NoPicture);
    }

    #[tokio::test]
    async fn what_is_damaged_is_rejected() {
        let faststart = format!("-f lavfi -i testsrc=size=320x240:rate=25 -t 4 -movflags +faststart {MP4}");
        let truncated =
            rewritten(made(&faststart).await, |content| content.truncate(content.len() * 2 / 3)).await;
        assert_eq!(reason(&truncated).await, Reason::Damaged);
        let headless = format!("-f lavfi -i testsrc=size=320x240:rate=25 -t 4 {MP4}");
        let truncated =
            rewritten(made(&headless).await, |content| content.truncate(content.len() * 2 / 3)).await;
        assert_eq!(reason(&truncated).await, Reason::NotAVideo);
        let scribbled = rewritten(made(&faststart).await, |content| {
            let data = content.windows(4).position(|window| window == b"mdat").unwrap();
            content[data + 4..].fill(0x5a);
        });
        assert_eq!(reason(&scribbled.await).await, Reason::Damaged);
    }

    #[tokio::test]
    async fn what_is_too_long_or_too_large_is_rejected() {
        let long = format!("-f lavfi -i testsrc=size=64x48:rate=5 -t 6 {MP4}");
        assert_eq!(reason(&made(&long).await).await, Reason::TooLong(0));
        // This one does not say how long it is.
        let endless = "-f lavfi -i testsrc=size=64x48:rate=5 -t 8 -codec:v libvpx -f webm -live 1";
        assert_eq!(reason(&made(endless).await).await, Reason::TooLong(0));
        let wide = "-f lavfi -i testsrc=size=4098x64:rate=5 -t 1 -codec:v mpeg4 -f avi";
        assert_eq!(reason(&made(wide).await).await, Reason::Sides);
    }
}
