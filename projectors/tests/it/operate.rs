//! Operator commands and the operator API on running processes.

use std::process::{Output, Stdio};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::time::timeout;
use tower::ServiceExt;
use vidlog_projectors::{
    Plan, cli::Operation, operator::Operator, operator_api, projections, rebuild::Rebuild,
};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::support::{ChildProcess, DEADLINE, TestSystem, envelope, liked, until};

#[tokio::test(flavor = "multi_thread")]
async fn pause_survives_a_restart_until_resumed() {
    let system = TestSystem::new().await;
    let mut first = start(&system, &[]);
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    until("the projection runs", async || states(&system, "likes") == ["running"; 3]).await;
    until("the first like is folded", async || lag(&system, "likes") == Some(0)).await;

    assert_eq!(stdout(&projectors(&system, &["pause", "likes"])), "likes is paused: 3 partitions stopped\n");
    system.append(&[envelope(liked(1, 2), 1_700_000_000_001)]).await;
    until("another projection folds it", async || lag(&system, "likes-table") == Some(0)).await;
    first.kill();
    let second = start(&system, &[]);
    until("the next process owns the partitions", async || {
        let status = partitions_of(&system, "likes");
        status.iter().all(|partition| {
            let instance = partition["instance"].as_str().unwrap_or_default();
            instance.ends_with(&format!("/{}", second.id())) && partition["state"] == "paused"
        })
    })
    .await;
    assert_eq!(lag(&system, "likes"), Some(1), "nothing is folded while it is paused");
    let behind: Vec<_> = partitions_of(&system, "likes")
        .iter()
        .filter_map(|partition| partition["lag_seconds"].as_f64())
        .collect();
    assert_eq!(
        behind.iter().filter(|seconds| **seconds > 1e6).count(),
        1,
        "the like is years old: {behind:?}"
    );
    assert_eq!(
        stdout(&projectors(&system, &["pause", "likes"])),
        "likes was paused already: 3 partitions stopped\n"
    );

    assert_eq!(stdout(&projectors(&system, &["resume", "likes"])), "likes resumed\n");
    until("the projection catches up", async || lag(&system, "likes") == Some(0)).await;
    assert_eq!(stdout(&projectors(&system, &["resume", "likes"])), "likes was not paused\n");
    system.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_distinguishes_unassigned_from_unavailable() {
    let system = TestSystem::new().await;
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    assert_eq!(states(&system, "likes"), ["unassigned"; 3]);
    assert_eq!(lag(&system, "likes"), Some(1));
    assert_eq!(
        stdout(&projectors(&system, &["pause", "likes"])),
        "likes is paused; no instance runs it now\n"
    );
    assert_eq!(states(&system, "likes"), ["paused"; 3]);

    let arguments = ["status", "--redis-url", "redis://127.0.0.1:1/", "likes", "likes-table"];
    let table = stdout(&projectors(&system, &arguments));
    assert!(table.contains("likes: positions unavailable: the view: "), "{table}");
    assert!(table.contains("no instance runs it"), "data of MySQL and Kafka is shown: {table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_all_projections_are_published() {
    let system = TestSystem::new().await;
    // The record is years old, and no process runs `likes-table`.
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    let mut process = start(&system, &["--only", "likes"]);
    let minute = 60_000;
    let age = async |projection: &str| published_age_ms(&system, projection).await;
    until("likes is folded", async || age("likes").await.is_some_and(|age| age < minute)).await;
    assert!(age("likes-table").await.unwrap() > 1000 * minute);
    assert!(age("follows-table").await.unwrap() < minute, "there is nothing to fold");
    for projection in projections::ALL {
        assert!(age(projection.name()).await.is_some(), "{}", projection.name());
    }
    process.kill();
    let before = age("likes").await.unwrap();
    until("the time stays", async || age("likes").await.unwrap() > before + 1000).await;
}

/// The age of the time up to which a projection has folded the log.
async fn published_age_ms(system: &TestSystem, projection: &str) -> Option<i64> {
    let query = "SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 - folded_until_ms AS SIGNED) FROM projection_lags
        WHERE projection = ?";
    sqlx::query_scalar(query).bind(projection).fetch_optional(&system.target.mysql).await.ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn second_process_with_same_instance_name_stops_the_first() {
    let system = TestSystem::new().await;
    let run = || {
        let (log, stores) = (system.log.clone(), system.stores.clone());
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move {
            let projections = [projections::find("likes").unwrap()];
            let plan = Plan { log: &log, stores: &stores, projections: &projections, instance: Some("one") };
            vidlog_projectors::run(plan, Readiness::new(), stop).await
        });
        (shutdown, task)
    };
    let first = run();
    until("the first process runs", async || states(&system, "likes") == ["running"; 3]).await;
    let second = run();
    let ended = timeout(DEADLINE, first.1).await.expect("the first process ends").unwrap();
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("another process runs as instance \"one\""), "{error}");
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    until("the second process folds", async || lag(&system, "likes") == Some(0)).await;
    second.0.request();
    timeout(DEADLINE, second.1).await.expect("the second process stops").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn named_instance_keeps_its_partitions_across_a_restart() {
    let system = TestSystem::new().await;
    // Longer than a restart takes on a slow machine. The other member learns of a rebalance after a fifth of it.
    let run =
        |name| start(&system, &["--only", "likes", "--instance", name, "--session-timeout-ms", "30000"]);
    let (first, _second) = (run("first"), run("second"));
    until("each instance owns partitions", async || {
        let owners = owners(&system);
        owners.iter().all(Option::is_some) && owners.iter().any(|owner| *owner != owners[0])
    })
    .await;
    let before = owners(&system);
    assert!(first.terminate().await.success());
    let without_first: Vec<_> =
        before.iter().map(|owner| owner.clone().filter(|owner| owner == "second")).collect();
    until("the partitions of the first are unassigned", async || owners(&system) == without_first).await;
    let _first = run("first");
    until("the first owns its partitions again", async || owners(&system) == before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_differences_set_the_exit_code() {
    let system = TestSystem::new().await;
    let _process = start(&system, &[]);
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    let likes = projectors(&system, &["audit", "likes", "likes-table"]);
    assert_eq!(stdout(&likes), "1 records, 7 lines, 0 differences\n");

    sqlx::query("UPDATE likes SET liked_ms = 7").execute(&system.target.mysql).await.unwrap();
    assert_eq!(
        stdout(&projectors(&system, &["audit", "likes", "--json"]))["{\n  \"records\": ".len()..][..1],
        *"1"
    );
    let wrong = projectors(&system, &["audit", "likes-table"]);
    assert_eq!(wrong.status.code(), Some(1));
    let out = String::from_utf8(wrong.stdout).unwrap();
    assert_eq!(
        out,
        "likes/1/1: expected 101 1700000000000, found 101 7\n1 records, 4 lines, 1 differences\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_covers_growing_and_paused_views() {
    let system = TestSystem::new().await;
    let _process = start(&system, &["--only", "likes", "likes-table"]);
    let (log, stores) = (system.log.clone(), system.stores.clone());
    let operator = Operator::open(&log, &stores).unwrap();
    let of = |name: &str| [projections::find(name).unwrap()];
    let audited = async {
        let mut records = Vec::new();
        for _ in 0..10 {
            let report = operator.audit(&of("likes-table")).await.unwrap();
            assert_eq!(report.differences, []);
            records.push(report.records);
        }
        operator.pause(&of("likes")[0]).await.unwrap();
        let report = operator.audit(&of("likes")).await.unwrap();
        assert_eq!(report.differences, [], "the paused view is audited at its position");
        (records, report.records)
    };
    let growing = async {
        for round in 0.. {
            let user = |number| 1 + 20 * round + number;
            let likes =
                (0..20).map(|number| envelope(liked(1 + number % 5, user(number)), 1_700_000_000_000));
            system.append(&likes.collect::<Vec<_>>()).await;
        }
    };
    let (records, stood) = tokio::select! {
        audited = audited => audited,
        () = growing => unreachable!(),
    };
    assert!(records.is_sorted() && records[0] < records[9], "the log grows meanwhile: {records:?}");
    assert!(stood > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_api_requires_the_token() {
    let system = TestSystem::new().await;
    let _process = start(&system, &["--only", "likes-table"]);
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    for closed in [routes(&system, None), routes(&system, Some(""))] {
        let (status, body) = call(&closed, "GET", "/projections", "").await;
        assert_eq!(status, 403);
        assert!(body["error"].as_str().unwrap().contains("VIDLOG_OPS_TOKEN"), "{body}");
    }
    let open = routes(&system, Some("right"));
    for (method, path) in [("GET", "/projections"), ("POST", "/projections/likes-table/pause")] {
        for token in ["", "wrong", "righ", "rightly"] {
            assert_eq!(call(&open, method, path, token).await.0, 401, "{method} {path} {token:?}");
        }
    }
    let call = async |method, path| call(&open, method, path, "right").await;
    assert_eq!(call("GET", "/projections/nothing").await.0, 404);
    let (status, all) = call("GET", "/projections").await;
    assert_eq!((status, all["projections"].as_array().unwrap().len()), (200, projections::ALL.len()));

    assert_eq!(call("POST", "/projections/likes-table/audit").await.0, 202);
    let audit = async || {
        let (_, one) = call("GET", "/projections/likes-table").await;
        one["audits"]["likes-table"].clone()
    };
    until("the audit ends", async || audit().await["state"] == "done").await;
    let done = audit().await;
    assert_eq!((&done["records"], &done["differences"]), (&1.into(), &0.into()));

    assert_eq!(call("POST", "/projections/likes-table/rebuild").await.0, 202);
    let rebuilt = async || {
        let (_, one) = call("GET", "/projections/likes-table").await;
        one["rebuilds"]["likes-table"].clone()
    };
    until("the rebuild ends", async || rebuilt().await["state"] != "running").await;
    let done = rebuilt().await;
    assert_eq!((&done["generation"], &done["differences"]), (&2.into(), &0.into()), "{done}");

    let (status, dropped) = call("DELETE", "/projections/likes-table/rebuild").await;
    assert_eq!((status, dropped["done"].is_string()), (200, true), "{dropped}");

    let (status, paused) = call("POST", "/projections/likes-table/pause").await;
    let message = "likes-table is paused: 3 partitions stopped";
    assert_eq!((status, paused["done"].as_str().unwrap()), (200, message));
    let (_, one) = call("GET", "/projections/likes-table").await;
    assert_eq!(one["projections"][0]["partitions"][0]["state"], "paused");
    let (status, resumed) = call("POST", "/projections/likes-table/resume").await;
    assert_eq!((status, resumed["done"].as_str().unwrap()), (200, "likes-table resumed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_api_maps_errors_to_http_statuses() {
    let system = TestSystem::new().await;
    let routes = routes(&system, Some("right"));
    let refused = async |method: &str, path: &str| {
        let (status, body) =
            call(&routes, method, &format!("/projections/likes-table/{path}"), "right").await;
        assert!(body["error"].is_string(), "{path}: {body}");
        status
    };
    let post = async |path: &str| refused("POST", path).await;
    assert_eq!(post("rebuild?take_over=maybe").await, 400);
    assert_eq!(post("dead-letters/likes:0/first/discard").await, 400);
    assert_eq!(post("dead-letters/dreams:0/1/discard").await, 400);
    assert_eq!(post("dead-letters/likes:0/1/discard").await, 404);
    let likes = projections::find("likes-table").unwrap();
    let _begun = Rebuild::begin(&system.log, &system.stores, likes).await.unwrap();
    assert_eq!(refused("DELETE", "rebuild").await, 409);
    assert_eq!(post("dead-letters/retry").await, 409);
    assert_eq!(post("dead-letters/likes:0/1/discard").await, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn periodic_audit_reports_differences() {
    let system = TestSystem::new().await;
    let _process = start(&system, &["--only", "likes-table"]);
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    until("the record is folded", async || lag(&system, "likes-table") == Some(0)).await;
    sqlx::query("UPDATE likes SET liked_ms = 7").execute(&system.target.mysql).await.unwrap();
    let operation =
        Operation { instance: None, ops_token: Some("right".to_owned().into()), audit_every: Some(1) };
    let projections = [projections::find("likes-table").unwrap()];
    let plan = Plan { log: &system.log, stores: &system.stores, projections: &projections, instance: None };
    let shutdown = Shutdown::new();
    let routes = operator_api::start(&plan, &operation, &shutdown).unwrap();
    until("the difference is reported", async || {
        let (_, one) = call(&routes, "GET", "/projections/likes-table", "right").await;
        let audit = &one["audits"]["likes-table"];
        audit["first"] == serde_json::json!(["likes/1/1: expected 101 1700000000000, found 101 7"])
    })
    .await;
    shutdown.request();
}

/// Returns the routes of an ops port with this token.
fn routes(system: &TestSystem, token: Option<&str>) -> Router {
    let ops_token = token.map(|token| token.to_owned().into());
    let operation = Operation { instance: None, ops_token, audit_every: None };
    let plan =
        Plan { log: &system.log, stores: &system.stores, projections: &projections::ALL, instance: None };
    operator_api::start(&plan, &operation, &Shutdown::new()).unwrap()
}

/// Calls a route; returns the status and the body.
async fn call(routes: &Router, method: &str, path: &str, token: &str) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .body(Body::empty())
        .unwrap();
    let answer = routes.clone().oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn start(system: &TestSystem, arguments: &[&str]) -> ChildProcess {
    system.start_projectors("127.0.0.1:0", arguments)
}

/// Runs a command to its end.
pub(crate) fn projectors(system: &TestSystem, arguments: &[&str]) -> Output {
    system.command(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The standard output of a command that succeeded.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The partitions of a projection in `status --json`.
pub(crate) fn partitions_of(system: &TestSystem, projection: &str) -> Vec<Value> {
    let status = stdout(&projectors(system, &["status", "--json", projection]));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["unknown"], serde_json::json!([]), "{status}");
    status["projections"][0]["partitions"].as_array().unwrap().clone()
}

fn states(system: &TestSystem, projection: &str) -> Vec<String> {
    let state = |partition: &Value| partition["state"].as_str().unwrap().to_owned();
    partitions_of(system, projection).iter().map(state).collect()
}

/// The owners of the partitions of likes.
fn owners(system: &TestSystem) -> Vec<Option<String>> {
    let owner = |partition: &Value| partition["instance"].as_str().map(str::to_owned);
    partitions_of(system, "likes").iter().map(owner).collect()
}

/// The lag of all partitions together, if it is available.
fn lag(system: &TestSystem, projection: &str) -> Option<i64> {
    partitions_of(system, projection).iter().map(|partition| partition["lag"].as_i64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_writes_nothing() {
    let system = TestSystem::new().await;
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    assert_eq!(lag(&system, "likes-table"), Some(1));
    for table in ["checkpoints_likes_table_2", "projections", "projector_status", "logs"] {
        let select = format!("SELECT COUNT(*) FROM {table}");
        let rows: i64 =
            sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(&system.target.mysql).await.unwrap();
        assert_eq!(rows, 0, "{table}");
    }
}
