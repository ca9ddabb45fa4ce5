//! The `projectors` binary: runs projections, and the commands that operate them.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use vidlog_projectors::{
    Plan,
    as_of::Scratch,
    cli::{self, AsOf, Cli, Command, InspectArgs, Run},
    operator::Operator,
    operator_api, projections,
    rebuild::{IfDifferent, Rebuild},
    view::Projection,
};
use vidlog_service_kit::{
    ops::{self, Readiness},
    serve::{bind, serve},
    shutdown::Shutdown,
    telemetry,
};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Run(config) => run(config).await.map(|()| ExitCode::SUCCESS),
        Command::List => {
            list();
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(config) => status(config).await,
        Command::Pause(config) => {
            let operator = Operator::open(&config.log, &config.stores)?;
            for projection in &config.projections {
                println!("{}", operator.pause(projection).await?);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Resume(config) => {
            let operator = Operator::open(&config.log, &config.stores)?;
            for projection in &config.projections {
                println!("{}", operator.resume(projection).await?);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Audit(config) => audit(config).await,
        Command::Rebuild(config) => rebuild(config).await,
        Command::AsOf(config) => as_of(config).await,
        Command::DeadLetters(config) => {
            let is_done = cli::dead_letters::run(config).await?;
            Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

async fn run(config: Run) -> anyhow::Result<()> {
    let metrics = telemetry::start(&config.telemetry)?;
    let shutdown = Shutdown::on_signal().context("failed to listen for signals")?;
    let readiness = Readiness::new();
    let plan = Plan {
        log: &config.log,
        stores: &config.stores,
        projections: &chosen(config.only),
        instance: config.operation.instance.as_deref(),
    };
    let router = ops::router(readiness.clone(), metrics, shutdown.clone()).merge(operator_api::start(
        &plan,
        &config.operation,
        &shutdown,
    )?);
    let ops = tokio::spawn(serve(bind(&config.ops_listen).await?, router, shutdown.clone()));
    let result = vidlog_projectors::run(plan, readiness, shutdown.clone()).await;
    shutdown.request();
    ops.await.context("the ops server panicked")?;
    result
}

async fn status(config: InspectArgs) -> anyhow::Result<ExitCode> {
    let status = Operator::open(&config.log, &config.stores)?.status(&chosen(config.projections)).await;
    if config.json {
        println!("{}", serde_json::to_string_pretty(&status).context("failed to write JSON")?);
    } else {
        print!("{status}");
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen(named: Vec<Projection>) -> Vec<Projection> {
    if named.is_empty() { projections::ALL.to_vec() } else { named }
}

fn list() {
    for projection in projections::ALL {
        println!("{}\t{}", projection.name(), projection.catalogued.streams.join(","));
    }
}

async fn audit(config: InspectArgs) -> anyhow::Result<ExitCode> {
    let report = Operator::open(&config.log, &config.stores)?.audit(&chosen(config.projections)).await?;
    if config.json {
        println!("{}", serde_json::to_string_pretty(&report).context("failed to write JSON")?);
    } else {
        for difference in &report.differences {
            println!("{difference}");
        }
        let unlisted = report.difference_count - report.differences.len();
        if unlisted > 0 {
            println!("{unlisted} more differences");
        }
        println!(
            "{} records, {} lines, {} differences",
            report.records, report.lines, report.difference_count
        );
    }
    Ok(if report.difference_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn as_of(config: AsOf) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new(&config.log, &config.stores, &config.name)?;
    match &config.until {
        Some(until) => println!("{}", scratch.fold(until).await?),
        None => println!("{}", scratch.drop_all().await?),
    }
    Ok(ExitCode::SUCCESS)
}

async fn rebuild(config: cli::Rebuild) -> anyhow::Result<ExitCode> {
    let name = config.projection.name();
    let rebuild = Rebuild::begin(&config.log, &config.stores, config.projection).await?;
    if config.drop {
        rebuild.drop_next().await?;
        println!("{name}: dropped all but the live generation");
        return Ok(ExitCode::SUCCESS);
    }
    let mut progress = rebuild.progress();
    tokio::spawn(async move {
        while progress.changed().await.is_ok() {
            let now = progress.borrow_and_update().to_string();
            eprintln!("{name}: {now}");
        }
    });
    let if_different = if config.take_over { IfDifferent::TakeOver } else { IfDifferent::Keep };
    let outcome = rebuild.run(if_different).await?;
    for difference in &outcome.differences {
        println!("{difference}");
    }
    let (before, after) = outcome.generation;
    let differences = outcome.differences.len();
    let at_least = if outcome.is_complete { "" } else { "at least " };
    println!("{name}: {} lines, {at_least}{differences} differences", outcome.lines);
    if before == after {
        println!(
            "generation {before} stays live; run it again with --take-over to switch anyway, or with --drop"
        );
    } else {
        println!("generation {after} is live");
    }
    Ok(if outcome.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
