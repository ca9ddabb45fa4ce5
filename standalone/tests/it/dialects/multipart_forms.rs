//! A client that sends every POST as multipart/form-data.

use reqwest::{RequestBuilder, multipart::Form};

use super::run_every_command;

#[tokio::test]
async fn multipart_forms_are_parameters() {
    run_every_command(with_form).await;
}

fn with_form(post: RequestBuilder, parameters: &[(&str, &str)], token: &str) -> RequestBuilder {
    let token = Form::new().text("token", token.to_owned());
    let form =
        parameters.iter().fold(token, |form, (name, text)| form.text((*name).to_owned(), (*text).to_owned()));
    post.multipart(form)
}
