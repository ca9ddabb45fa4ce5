//! What a file is, by its content, and what has to be done to publish it.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use serde::Deserialize;

use super::ffmpeg::{self, INPUT, ToolError};

/// How long looking at a file may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// The smallest and the largest side of a picture that is accepted, in pixels.
const SIDES: RangeInclusive<u32> = 16..=4096;
/// The longer and the shorter side of a picture that is published.
pub(super) const PUBLISHED_SIDES: (u32, u32) = (1920, 1080);
/// Frames in a second of a video that is published.
pub(super) const PUBLISHED_FPS: u32 = 60;
/// Bits in a second above which a file is made smaller, though every client could play it.
const COPIED_BIT_RATE: u64 = 8_000_000;

/// Why an upload is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It is no video, or none of a known kind.
    NotAVideo,
    /// There is only sound.
    NoPicture,
    /// The picture is too small or too large.
    Sides,
    /// It is too long; how many minutes are fine.
    TooLong(u64),
    /// It can't be read to its end.
    Damaged,
    /// It brought the tools down, again and again.
    Unworkable,
    /// It is not in the store any more.
    Lost,
}

impl Reason {
    /// In words for the author.
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
            Self::Unworkable => {
                "The video could not be processed. Save it in another format and upload it again.".to_owned()
            }
            Self::Lost => "The upload was lost on our side. Please upload the video again.".to_owned(),
        }
    }
}

/// What to do with a file that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Every client can play it as it is.
    Copy,
    /// It has to be made playable, or smaller.
    Encode,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    /// The names of its container format, comma separated.
    container: String,
    /// Its length, if the container knows.
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

impl Facts {
    /// Its length, if it is known.
    pub(super) const fn duration(&self) -> Option<Duration> {
        self.duration
    }

    /// Its length, if that stands in the file and was not guessed from its size: a file that is shorter is damaged.
    pub(super) fn declared_duration(&self) -> Option<Duration> {
        self.duration.filter(|_| self.is_mp4() || self.container.contains("matroska"))
    }

    /// Whether there is a picture in it that lasts.
    pub(super) fn plays(&self) -> bool {
        self.video.is_some() && self.duration.is_some_and(|duration| !duration.is_zero())
    }

    /// What has to be done to publish it.
    pub(super) fn plan(&self, longest: Duration) -> Result<Plan, Reason> {
        let video = self.video.as_ref().ok_or(Reason::NoPicture)?;
        if !SIDES.contains(&video.width) || !SIDES.contains(&video.height) {
            return Err(Reason::Sides);
        }
        self.check_duration(longest)?;
        let playable = self.is_mp4()
            && video.is_playable()
            && self.bit_rate.is_some_and(|bits| bits <= COPIED_BIT_RATE)
            && self.audio_codec.as_ref().is_none_or(|codec| codec == "aac");
        Ok(if playable { Plan::Copy } else { Plan::Encode })
    }

    /// Whether it is short enough.
    pub(super) fn check_duration(&self, longest: Duration) -> Result<(), Reason> {
        match self.duration {
            Some(duration) if duration > longest => Err(Reason::TooLong(longest.as_secs() / 60)),
            _ => Ok(()),
        }
    }

    fn is_mp4(&self) -> bool {
        self.container.split(',').any(|name| name == "mp4")
    }
}

impl Video {
    fn is_playable(&self) -> bool {
        let (long, short) = (self.width.max(self.height), self.width.min(self.height));
        self.codec == "h264"
            && self.pixel_format == "yuv420p"
            && long <= PUBLISHED_SIDES.0
            && short <= PUBLISHED_SIDES.1
            && long % 2 == 0
            && short % 2 == 0
            // Clocks of phones are not exact.
            && self.fps <= f64::from(PUBLISHED_FPS) + 1.0
    }
}

/// Looks at a file in a folder.
pub(super) async fn look_at(folder: &Path, file: &str) -> Result<Option<Facts>, ToolError> {
    const ENTRIES: &str = "stream=codec_type,codec_name,width,height,pix_fmt,avg_frame_rate\
                           :stream_disposition=attached_pic:format=format_name,duration,bit_rate";
    let input = format!("file:{file}");
    let rest = ["-show_entries", ENTRIES, "-of", "json", input.as_str()];
    match ffmpeg::run("ffprobe", INPUT.into_iter().chain(rest), folder, PROBE_TIMEOUT).await {
        Ok(answer) => Ok(read(&answer)),
        Err(ToolError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Answer {
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
        // The cover of an album is a video stream to ffprobe.
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
            fps: self.avg_frame_rate.as_deref().and_then(ratio).unwrap_or_default(),
        }
    }
}

fn read(answer: &[u8]) -> Option<Facts> {
    let Answer { streams, format } = serde_json::from_slice(answer).ok()?;
    let first = |codec_type| streams.iter().find(|stream| stream.is(codec_type));
    let duration = format.duration.and_then(|seconds| seconds.parse().ok());
    Some(Facts {
        container: format.names,
        duration: duration.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        bit_rate: format.bit_rate.and_then(|bits| bits.parse().ok()),
        video: first("video").map(Stream::video),
        audio_codec: first("audio").map(Stream::codec),
    })
}

/// A number that is written as a ratio, such as 30000/1001.
fn ratio(text: &str) -> Option<f64> {
    let (over, under) = text.split_once('/')?;
    let (over, under): (f64, f64) = (over.parse().ok()?, under.parse().ok()?);
    (under > 0.0).then(|| over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_mins(15);

    fn facts() -> Facts {
        Facts {
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

    fn plan(change: impl FnOnce(&mut Facts)) -> Result<Plan, Reason> {
        let mut facts = facts();
        change(&mut facts);
        facts.plan(LONGEST)
    }

    fn plan_of_video(change: impl Fn(&mut Video)) -> Result<Plan, Reason> {
        plan(|facts| facts.video.iter_mut().for_each(&change))
    }

    #[test]
    fn what_every_client_plays_is_copied() {
        assert_eq!(plan(|_| {}), Ok(Plan::Copy));
        assert_eq!(plan(|facts| facts.audio_codec = None), Ok(Plan::Copy));
    }

    #[test]
    fn anything_else_is_encoded() {
        let plans = [
            plan(|facts| facts.container = "matroska,webm".to_owned()),
            plan(|facts| facts.audio_codec = Some("opus".to_owned())),
            plan(|facts| facts.bit_rate = Some(40_000_000)),
            plan(|facts| facts.bit_rate = None),
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
    fn what_is_out_of_bounds_is_rejected() {
        assert_eq!(plan(|facts| facts.video = None), Err(Reason::NoPicture));
        assert_eq!(plan_of_video(|video| video.width = 8), Err(Reason::Sides));
        assert_eq!(plan_of_video(|video| video.height = 4097), Err(Reason::Sides));
        let long = plan(|facts| facts.duration = Some(LONGEST + Duration::from_millis(1)));
        assert_eq!(long, Err(Reason::TooLong(15)));
    }

    #[test]
    fn an_albums_cover_is_no_video() {
        let answer = br#"{"streams":[
            {"codec_type":"audio","codec_name":"aac","disposition":{"attached_pic":0}},
            {"codec_type":"video","codec_name":"mjpeg","width":500,"height":500,"disposition":{"attached_pic":1}}],
            "format":{"format_name":"mov,mp4","duration":"180.5","bit_rate":"128000"}}"#;
        let facts = read(answer).unwrap();
        assert_eq!(facts.video, None);
        assert_eq!(facts.duration(), Some(Duration::from_millis(180_500)));
    }

    #[test]
    fn frames_a_second_are_a_ratio() {
        assert_eq!(ratio("30/1"), Some(30.0));
        assert_eq!(ratio("0/0"), None);
        assert_eq!(ratio("30"), None);
    }

    #[test]
    fn every_reason_fits_into_its_column() {
        let reasons = [
            Reason::NotAVideo,
            Reason::NoPicture,
            Reason::Sides,
            Reason::TooLong(15),
            Reason::Damaged,
            Reason::Unworkable,
            Reason::Lost,
        ];
        for reason in reasons {
            let words = reason.for_author();
            assert!(words.chars().count() <= 255 && words.ends_with('.'), "{words}");
        }
    }
}
