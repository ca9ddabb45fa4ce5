//! The description of the API: generated from the code, committed, served.

use std::path::Path;

use crate::app::App;

#[test]
fn the_committed_document_is_what_the_code_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/openapi.json");
    let generated = vidlog_standalone::openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&file, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == generated,
        "schemas/openapi.json is not what the code says; run the tests with UPDATE_SCHEMAS=1"
    );
}

#[tokio::test]
async fn the_document_is_served_with_a_page_to_try_it() {
    let app = App::start().await;
    let document = app.http.get(app.url("/openapi.json")).send().await.unwrap();
    assert_eq!(document.status(), 200);
    let document: serde_json::Value = serde_json::from_str(&document.text().await.unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 17, "{:?}", paths.keys());
    let page = app.http.get(app.url("/docs/")).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.text().await.unwrap().contains("swagger-ui"));
}
