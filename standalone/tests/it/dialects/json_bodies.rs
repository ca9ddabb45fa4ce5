//! Clients that send every parameter of a POST in a JSON object, numbers as numbers, with null for missing ones.

use reqwest::{RequestBuilder, header::CONTENT_TYPE};
use serde_json::{Map, Value};

use super::run_every_command;

#[tokio::test]
async fn json_bodies_are_parameters() {
    run_every_command(with_json).await;
}

fn with_json(post: RequestBuilder, parameters: &[(&str, &str)], token: &str) -> RequestBuilder {
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let mut object: Map<_, _> =
        parameters.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect();
    object.insert("token".to_owned(), if token.is_empty() { Value::Null } else { token.into() });
    object.insert("unknown".to_owned(), true.into());
    post.header(CONTENT_TYPE, "application/json;charset=UTF-8").body(Value::Object(object).to_string())
}
