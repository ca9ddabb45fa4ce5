//! Runs the media worker as its own process.

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use vidlog_command_api::{
    media::{self, Limits, MediaConfig, MediaContext, UploadSource},
    publisher::KafkaLog,
};
use vidlog_events::Topics;
use vidlog_read_models::{MediaUrls, ReadModels};
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;
use vidlog_service_kit::{
    config::{Kafka, Stores, Telemetry},
    mysql, objects,
    ops::{self, Readiness},
    serve::{bind, serve},
    shutdown::Shutdown,
    telemetry,
};

/// Maximum number of MySQL connections; concurrent uploads share them.
const MYSQL_CONNECTIONS: u32 = 8;

/// Transcodes uploads to a playable file and a cover, and appends the outcomes to the log.
#[derive(Debug, Parser)]
#[command(name = "media-worker", version)]
struct Cli {
    /// Listen address of `/livez`, `/readyz` and `/metrics`. Keep it private.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18085")]
    ops_listen: String,
    #[command(flatten)]
    media: MediaConfig,
    /// Object store of originals and published media: the same as the command API's.
    #[arg(long, env = "VIDLOG_OBJECT_STORE")]
    object_store: String,
    #[command(flatten)]
    log: Kafka,
    #[command(flatten)]
    stores: Stores,
    #[command(flatten)]
    telemetry: Telemetry,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let metrics = telemetry::start(&cli.telemetry)?;
    let shutdown = Shutdown::on_signal().context("failed to listen for signals")?;
    let readiness = Readiness::new();
    let ops = ops::router(readiness.clone(), metrics, shutdown.clone());
    let ops = tokio::spawn(serve(bind(&cli.ops_listen).await?, ops, shutdown.clone()));
    let log = KafkaLog::open(&cli.log.kafka_brokers, Topics::new(&cli.stores.namespace))
        .context("failed to create the Kafka producer")?;
    let media = open(&cli, log.clone())?;
    let source = UploadSource { log: &cli.log, namespace: &cli.stores.namespace };
    let result = media::run(cli.media, source, media, readiness, shutdown.clone()).await;
    shutdown.request();
    log.flush().await;
    ops.await.context("the ops server panicked")?;
    result
}

fn open(cli: &Cli, log: KafkaLog) -> anyhow::Result<MediaContext> {
    let stores = &cli.stores;
    let redis = Redis::open(stores.redis_url.reveal()).context("failed to parse the Redis URL")?;
    let mysql =
        mysql::open(stores.mysql_url.reveal(), MYSQL_CONNECTIONS).context("failed to parse the MySQL URL")?;
    let keys = Keys::new(&stores.namespace, stores.shards);
    // The worker builds no media URLs.
    let read_models = ReadModels::new(keys, redis, mysql.clone(), MediaUrls::new(""));
    Ok(MediaContext {
        log: Arc::new(log),
        objects: objects::open(&cli.object_store)?,
        mysql,
        freshness: read_models.freshness,
        limits: Limits::default(),
    })
}
