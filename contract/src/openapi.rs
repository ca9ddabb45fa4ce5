//! What all endpoints have in common, as the `OpenAPI` document describes it: once here, not once an endpoint.

use utoipa::{
    IntoParams, PartialSchema,
    openapi::{
        Components, Content, Header, HeaderBuilder, Object, OpenApi, Ref, RefOr, Response, ResponseBuilder,
        Type,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        schema::AnyOfBuilder,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::error::{Code, Status};

/// Where the endpoints of the client contract are; others answer no status.
const CONTRACT: &str = "/douyin/";
const JSON: &str = "application/json";
const STATUS: &str = "Status";
const OUTCOME: &str = "It was answered, which is not to say that it went well: `status_code` tells. 0 is success. \
    Whatever is wrong with the call itself (codes 10001 to 10006) is HTTP 200 too, with a `status_code` of the list \
    at `Status`.";
const STALE: &str = "`true` where the caller's latest writes may not be seen yet";
const POSITION: &str =
    "Where in the log the event of this command is, if it is known; to be named in reads elsewhere";
const REQUEST_ID: &str = "Names the request, here and in its events: 1 to 128 printable ASCII characters. One that \
    is none is replaced; whichever it is stands in the answer, also in a failure";

/// The header of a call that may be repeated.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IdempotencyKey {
    /// Names this attempt, at most 255 characters. For 24 hours a retry with the same key and parameters changes
    /// nothing more, and is answered alike.
    #[param(rename = "Idempotency-Key", required = false, nullable = false)]
    pub idempotency_key: Option<String>,
}

/// The header of a call that must see certain writes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct PositionHeader {
    /// Positions that must be seen, comma separated, as commands answered them; at most 16. The caller's own writes
    /// of the last minute are waited for without it.
    #[param(rename = "Vidlog-Position", required = false, nullable = false, example = "likes:3:1042")]
    pub vidlog_position: Option<String>,
}

/// Adds to a document what all of its endpoints have in common: how a caller is known, the headers, how calls fail.
pub fn add_common_parts(document: &mut OpenApi) {
    add_components(document.components.get_or_insert_default());
    document.security = Some(["token", "bearer"].map(requirement).into());
    for (path, item) in &mut document.paths.paths {
        if path.starts_with(CONTRACT) {
            item.get.iter_mut().for_each(complete_read);
            item.post.iter_mut().for_each(complete_command);
        }
        for operation in item.get.iter_mut().chain(&mut item.post) {
            add_faults(operation, &[Code::Internal, Code::Unavailable]);
        }
    }
}

fn add_components(components: &mut Components) {
    components.schemas.insert(STATUS.to_owned(), Status::schema());
    let token = "What register or login answered. In a form it may stand in the body. It goes before `Authorization`; \
        empty is as good as missing, but one that does not verify is a failure, 10002.";
    let token = SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::with_description("token", token)));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.add_security_scheme("token", token);
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    for code in [Code::PayloadTooLarge, Code::Internal, Code::Unavailable] {
        let content = Content::new(Some(Ref::from_schema_name(STATUS)));
        let response = ResponseBuilder::new().description(code.meaning()).content(JSON, content).build();
        components.responses.insert(format!("{code:?}"), response.into());
    }
}

fn complete_read(operation: &mut Operation) {
    add_parameters(operation, PositionHeader::into_params(|| None));
    complete_answer(operation, &[("Vidlog-Stale", STALE)]);
}

fn complete_command(operation: &mut Operation) {
    let request_id = ParameterBuilder::new()
        .name("X-Request-Id")
        .parameter_in(ParameterIn::Header)
        .description(Some(REQUEST_ID))
        .schema(Some(Object::with_type(Type::String)));
    add_parameters(operation, vec![request_id.build()]);
    let headers = [("X-Request-Id", REQUEST_ID), ("Vidlog-Position", POSITION), ("Vidlog-Stale", STALE)];
    complete_answer(operation, &headers);
}

fn add_parameters(operation: &mut Operation, parameters: Vec<Parameter>) {
    operation.parameters.get_or_insert_default().extend(parameters.into_iter().map(RefOr::T));
}

/// Says of HTTP 200 that it may be a failure, which has no more than the status.
fn complete_answer(operation: &mut Operation, headers: &[(&str, &str)]) {
    add_faults(operation, &[Code::PayloadTooLarge]);
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    answer.description = [answer.description.as_str(), OUTCOME].join(" ").trim().into();
    answer.headers.extend(headers.iter().map(|(name, what)| ((*name).to_owned(), header(what))));
    if let Some(RefOr::T(Content { schema: Some(schema), .. })) = answer.content.get_mut(JSON) {
        *schema = AnyOfBuilder::new().item(schema.clone()).item(Ref::from_schema_name(STATUS)).into();
    }
}

fn add_faults(operation: &mut Operation, faults: &[Code]) {
    let fault = |code: &Code| {
        let response = Ref::from_response_name(format!("{code:?}"));
        (code.http_status().as_u16().to_string(), RefOr::<Response>::Ref(response))
    };
    operation.responses.responses.extend(faults.iter().map(fault));
}

fn header(what: &str) -> RefOr<Header> {
    let text = Object::with_type(Type::String);
    RefOr::T(HeaderBuilder::new().schema(Some(text)).description(Some(what)).build())
}

fn requirement(scheme: &str) -> SecurityRequirement {
    SecurityRequirement::new(scheme, [""; 0])
}
