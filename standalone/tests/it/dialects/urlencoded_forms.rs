//! A client that sends parameters as an urlencoded form and the token in the query, to a base address that ends with a
//! slash.

use reqwest::{RequestBuilder, header::CONTENT_TYPE};
use url::form_urlencoded::Serializer;

use super::run_every_command;

#[tokio::test]
async fn urlencoded_forms_are_parameters() {
    run_every_command(with_form).await;
}

fn with_form(post: RequestBuilder, parameters: &[(&str, &str)], token: &str) -> RequestBuilder {
    let (client, request) = post.build_split();
    let mut request = request.unwrap();
    let path = request.url().path().replace("/douyin", "//douyin");
    request.url_mut().set_path(&path);
    let form = Serializer::new(String::new()).extend_pairs(parameters).finish();
    RequestBuilder::from_parts(client, request)
        .query(&[("token", token)])
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form)
}
