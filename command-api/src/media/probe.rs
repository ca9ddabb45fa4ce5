//! Probes a media file, and decides whether it can be published as it is, must be encoded, or is rejected.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use serde::Deserialize;

use super::ffmpeg::{self, INPUT_OPTIONS, ToolError};

const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Accepted width and height of a video, in pixels.
const SIDES: RangeInclusive<u32> = 16..=4096;
/// Maximum longer and shorter side of a published video, in pixels.
pub(super) const PUBLISHED_SIDES: (u32, u32) = (1920, 1080);
/// Maximum frame rate of a published video.
pub(super) const PUBLISHED_FPS: u32 = 60;
/// Bit rate above which a file is encoded again, although every client could play it.
const MAX_COPIED_BIT_RATE: u64 = 8_000_000;

/// Why an upload is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RejectReason {
    /// Not a video, or an unsupported format.
    NotAVideo,
    /// Audio only.
    NoPicture,
    /// The picture is too small or too large.
    Sides,
    /// Longer than the maximum, in minutes.
    TooLong(u64),
    /// Can't be read to its end.
    Damaged,
    /// Repeatedly crashed the tools.
    Unprocessable,
    /// Missing from the object store.
    Lost,
}

impl RejectReason {
    /// Text for the author.
    pub(super) fn for_author(self) -> String {
        match self {
            Self::NotAVideo => {
                "This file can't be read as a video. It may be incomplete, or of a kind that is not \
                                supported; MP4, MOV, MKV, WebM, AVI, FLV, MPEG and WMV are."
                    .to_owned()
            }
            Self::NoPicture => "This file has sound, but no picture.".to_owned(),
            Self::Sides => format!(
                "The picture is too small or too large: each side must have {} to {} pixels.",
                SIDES.start(),
                SIDES.end()
            ),
            Self::TooLong(minutes) => {
                format!("The video is too long: it may have at most {minutes} minutes.")
            }
            Self::Damaged => "The video is damaged or incomplete: it can't be read to its end.".to_owned(),
            Self::Unprocessable => {
                "The video could not be processed. Save it in another format and upload it again.".to_owned()
            }
            Self::Lost => "The upload was lost on our side. Please upload the video again.".to_owned(),
        }
    }
}

/// How to publish a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Copy the streams: every client can play them.
    Copy,
    /// Encode the streams again.
    Encode,
}

/// Properties of a media file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MediaInfo {
    /// Names of the container format, comma separated.
    container: String,
    /// Length, if the container contains it.
    duration: Option<Duration>,
    bit_rate: Option<u64>,
    video: Option<Video>,
    audio_codec: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Video {
    codec: String,
    width: u32,
    height: u32,
    pixel_format: String,
    fps: f64,
}

impl MediaInfo {
    /// Length, if known.
    pub(super) const fn duration(&self) -> Option<Duration> {
        self.duration
    }

    /// Length declared by the file, not estimated from its size: a shorter file is damaged.
    pub(super) fn declared_duration(&self) -> Option<Duration> {
        self.duration.filter(|_| self.is_mp4() || self.container.contains("matroska"))
    }

    /// Whether the file has a picture and a length above zero.
    pub(super) fn is_playable(&self) -> bool {
        self.video.is_some() && self.duration.is_some_and(|duration| !duration.is_zero())
    }

    /// Decides how to publish the file.
    pub(super) fn plan(&self, max_length: Duration) -> Result<Plan, RejectReason> {
        let video = self.video.as_ref().ok_or(RejectReason::NoPicture)?;
        if !SIDES.contains(&video.width) || !SIDES.contains(&video.height) {
            return Err(RejectReason::Sides);
        }
        self.check_duration(max_length)?;
        let playable = self.is_mp4()
            && video.is_universally_playable()
            && self.bit_rate.is_some_and(|bits| bits <= MAX_COPIED_BIT_RATE)
            && self.audio_codec.as_ref().is_none_or(|codec| codec == "aac");
        Ok(if playable { Plan::Copy } else { Plan::Encode })
    }

    /// Checks the maximum length.
    pub(super) fn check_duration(&self, max_length: Duration) -> Result<(), RejectReason> {
        match self.duration {
            Some(duration) if duration > max_length => Err(RejectReason::TooLong(max_length.as_secs() / 60)),
            _ => Ok(()),
        }
    }

    fn is_mp4(&self) -> bool {
        self.container.split(',').any(|name| name == "mp4")
    }
}

impl Video {
    fn is_universally_playable(&self) -> bool {
        let (long, short) = (self.width.max(self.height), self.width.min(self.height));
        self.codec == "h264"
            && self.pixel_format == "yuv420p"
            && long <= PUBLISHED_SIDES.0
            && short <= PUBLISHED_SIDES.1
            && long % 2 == 0
            && short % 2 == 0
            // Phones record at inexact frame rates.
            && self.fps <= f64::from(PUBLISHED_FPS) + 1.0
    }
}

/// Probes a file in a directory; `None` if it is not a media file.
pub(super) async fn probe(directory: &Path, file: &str) -> Result<Option<MediaInfo>, ToolError> {
    const ENTRIES: &str = "stream=codec_type,codec_name,width,height,pix_fmt,avg_frame_rate\
                           :stream_disposition=attached_pic:format=format_name,duration,bit_rate";
    let input = format!("file:{file}");
    let rest = ["-show_entries", ENTRIES, "-of", "json", input.as_str()];
    match ffmpeg::run("ffprobe", INPUT_OPTIONS.into_iter().chain(rest), directory, PROBE_TIMEOUT).await {
        Ok(output) => Ok(parse_output(&output)),
        Err(ToolError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct ProbeOutput {
    #[serde(default)]
    streams: Vec<Stream>,
    format: Format,
}

#[derive(Deserialize)]
struct Format {
    #[serde(rename = "format_name")]
    names: String,
    duration: Option<String>,
    bit_rate: Option<String>,
}

#[derive(Deserialize)]
struct Stream {
    codec_type: Option<String>,
    codec_name: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    pix_fmt: Option<String>,
    avg_frame_rate: Option<String>,
    disposition: Option<Disposition>,
}

#[derive(Deserialize)]
struct Disposition {
    #[serde(default)]
    attached_pic: u8,
}

impl Stream {
    fn is(&self, codec_type: &str) -> bool {
        // ffprobe reports an album cover as a video stream.
        let attached = self.disposition.as_ref().is_some_and(|disposition| disposition.attached_pic != 0);
        self.codec_type.as_deref() == Some(codec_type) && !attached
    }

    fn codec(&self) -> String {
        self.codec_name.clone().unwrap_or_default()
    }

    fn video(&self) -> Video {
        Video {
            codec: self.codec(),
            width: self.width.unwrap_or_default(),
            height: self.height.unwrap_or_default(),
            pixel_format: self.pix_fmt.clone().unwrap_or_default(),
            fps: self.avg_frame_rate.as_deref().and_then(parse_ratio).unwrap_or_default(),
        }
    }
}

fn parse_output(output: &[u8]) -> Option<MediaInfo> {
    let ProbeOutput { streams, format } = serde_json::from_slice(output).ok()?;
    let first = |codec_type| streams.iter().find(|stream| stream.is(codec_type));
    let duration = format.duration.and_then(|seconds| seconds.parse().ok());
    Some(MediaInfo {
        container: format.names,
        duration: duration.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        bit_rate: format.bit_rate.and_then(|bits| bits.parse().ok()),
        video: first("video").map(Stream::video),
        audio_codec: first("audio").map(Stream::codec),
    })
}

/// Parses a ratio such as `30000/1001`.
fn parse_ratio(text: &str) -> Option<f64> {
    let (over, under) = text.split_once('/')?;
    let (over, under): (f64, f64) = (over.parse().ok()?, under.parse().ok()?);
    (under > 0.0).then(|| over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LENGTH: Duration = Duration::from_mins(15);

    fn info() -> MediaInfo {
        MediaInfo {
            container: "mov,mp4,m4a,3gp,3g2,mj2".to_owned(),
            duration: Some(Duration::from_secs(10)),
            bit_rate: Some(2_000_000),
            video: Some(Video {
                codec: "h264".to_owned(),
                width: 1080,
                height: 1920,
                pixel_format: "yuv420p".to_owned(),
                fps: 30.0,
            }),
            audio_codec: Some("aac".to_owned()),
        }
    }

    fn plan(change: impl FnOnce(&mut MediaInfo)) -> Result<Plan, RejectReason> {
        let mut info = info();
        change(&mut info);
        info.plan(MAX_LENGTH)
    }

    fn plan_of_video(change: impl Fn(&mut Video)) -> Result<Plan, RejectReason> {
        plan(|info| info.video.iter_mut().for_each(&change))
    }

    #[test]
    fn universally_playable_file_is_copied() {
        assert_eq!(plan(|_| {}), Ok(Plan::Copy));
        assert_eq!(plan(|info| info.audio_codec = None), Ok(Plan::Copy));
    }

    #[test]
    fn other_formats_are_encoded() {
        let plans = [
            plan(|info| info.container = "matroska,webm".to_owned()),
            plan(|info| info.audio_codec = Some("opus".to_owned())),
            plan(|info| info.bit_rate = Some(40_000_000)),
            plan(|info| info.bit_rate = None),
            plan_of_video(|video| video.codec = "hevc".to_owned()),
            plan_of_video(|video| video.pixel_format = "yuv420p10le".to_owned()),
            plan_of_video(|video| video.width = 1440),
            plan_of_video(|video| video.height = 3840),
            plan_of_video(|video| video.height = 1919),
            plan_of_video(|video| video.fps = 120.0),
        ];
        assert_eq!(plans, [Ok(Plan::Encode); 10]);
    }

    #[test]
    fn file_out_of_bounds_is_rejected() {
        assert_eq!(plan(|info| info.video = None), Err(RejectReason::NoPicture));
        assert_eq!(plan_of_video(|video| video.width = 8), Err(RejectReason::Sides));
        assert_eq!(plan_of_video(|video| video.height = 4097), Err(RejectReason::Sides));
        let long = plan(|info| info.duration = Some(MAX_LENGTH + Duration::from_millis(1)));
        assert_eq!(long, Err(RejectReason::TooLong(15)));
    }

    #[test]
    fn album_cover_is_not_a_video() {
        let output = br#"{"streams":[
            {"codec_type":"audio","codec_name":"aac","disposition":{"attached_pic":0}},
            {"codec_type":"video","codec_name":"mjpeg","width":500,"height":500,"disposition":{"attached_pic":1}}],
            "format":{"format_name":"mov,mp4","duration":"180.5","bit_rate":"128000"}}"#;
        let info = parse_output(output).unwrap();
        assert_eq!(info.video, None);
        assert_eq!(info.duration(), Some(Duration::from_millis(180_500)));
    }

    #[test]
    fn frame_rate_is_parsed_as_a_ratio() {
        assert_eq!(parse_ratio("30/1"), Some(30.0));
        assert_eq!(parse_ratio("0/0"), None);
        assert_eq!(parse_ratio("30"), None);
    }

    #[test]
    fn every_reason_fits_its_column() {
        let reasons = [
            RejectReason::NotAVideo,
            RejectReason::NoPicture,
            RejectReason::Sides,
            RejectReason::TooLong(15),
            RejectReason::Damaged,
            RejectReason::Unprocessable,
            RejectReason::Lost,
        ];
        for reason in reasons {
            let text = reason.for_author();
            assert!(text.chars().count() <= 255 && text.ends_with('.'), "{text}");
        }
    }
}
