//! A client that sends parameters in the query, the token only in `Authorization`, and an empty body declared as JSON.

use reqwest::{RequestBuilder, header::CONTENT_TYPE};

use super::run_every_command;

#[tokio::test]
async fn empty_bodies_are_accepted() {
    run_every_command(with_query).await;
}

fn with_query(post: RequestBuilder, parameters: &[(&str, &str)], token: &str) -> RequestBuilder {
    post.query(parameters).bearer_auth(token).header(CONTENT_TYPE, "application/json").body("")
}
