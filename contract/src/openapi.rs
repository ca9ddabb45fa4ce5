//! The parts of the `OpenAPI` document that all endpoints share.

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

/// The base path of the client contract. Endpoints outside it do not return the status fields.
const CONTRACT: &str = "/douyin/";
const JSON: &str = "application/json";
const STATUS: &str = "Status";
const OUTCOME: &str = "`status_code` is 0 on success. Business errors (codes 10001 to 10006) are HTTP 200 too, with a \
    `status_code` that the schema `Status` lists.";
const STALE: &str = "`true` if the response may lack the caller's latest writes";
const POSITION: &str = "Log position of this command's event, if known. A read that sends it waits for it";
const REQUEST_ID: &str = "Id of the request in logs and events: 1 to 128 printable ASCII characters. A missing or invalid \
    one is replaced by a new id. Every response, also an error, contains the id";

/// The header that makes a retry idempotent.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IdempotencyKey {
    /// Idempotency key, at most 255 characters. For 24 hours a retry with the same key and parameters changes nothing
    /// and returns the first response; for 15 minutes if there was no response.
    #[param(rename = "Idempotency-Key", required = false, nullable = false)]
    pub idempotency_key: Option<String>,
}

/// The header that names positions which a read must include.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct PositionHeader {
    /// Positions that commands returned, comma separated, at most 16. The read waits for them, and for no others. It waits
    /// for the caller's own writes of the last 10 minutes even without this header.
    #[param(rename = "Vidlog-Position", required = false, nullable = false, example = "likes:3:1042")]
    pub vidlog_position: Option<String>,
}

/// Adds the security schemes, headers and error responses that all endpoints share.
pub fn add_common_parts(document: &mut OpenApi) {
    add_components(document.components.get_or_insert_default());
    document.security = Some(["token", "bearer"].map(requirement).into());
    for (path, item) in &mut document.paths.paths {
        if path.starts_with(CONTRACT) {
            item.get.iter_mut().for_each(extend_read);
            item.post.iter_mut().for_each(extend_command);
        }
        for operation in item.get.iter_mut().chain(&mut item.post) {
            add_errors(operation, &[Code::Internal, Code::Unavailable]);
        }
    }
}

fn add_components(components: &mut Components) {
    components.schemas.insert(STATUS.to_owned(), Status::schema());
    let token = "The token that register or login returned. On POST also in the body. It takes precedence over \
        `Authorization`. Empty counts as missing; one that does not verify is error 10002.";
    let token = SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::with_description("token", token)));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.add_security_scheme("token", token);
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    for code in [Code::PayloadTooLarge, Code::TooManyRequests, Code::Internal, Code::Unavailable] {
        let content = Content::new(Some(Ref::from_schema_name(STATUS)));
        let response = ResponseBuilder::new().description(code.meaning()).content(JSON, content).build();
        components.responses.insert(format!("{code:?}"), response.into());
    }
}

fn extend_read(operation: &mut Operation) {
    add_parameters(operation, PositionHeader::into_params(|| None));
    extend_success(operation, &[("Vidlog-Stale", STALE)]);
}

fn extend_command(operation: &mut Operation) {
    let request_id = ParameterBuilder::new()
        .name("X-Request-Id")
        .parameter_in(ParameterIn::Header)
        .description(Some(REQUEST_ID))
        .schema(Some(Object::with_type(Type::String)));
    add_parameters(operation, vec![request_id.build()]);
    let headers = [("X-Request-Id", REQUEST_ID), ("Vidlog-Position", POSITION), ("Vidlog-Stale", STALE)];
    extend_success(operation, &headers);
}

fn add_parameters(operation: &mut Operation, parameters: Vec<Parameter>) {
    operation.parameters.get_or_insert_default().extend(parameters.into_iter().map(RefOr::T));
}

/// Documents that HTTP 200 may also carry a business error, which has only the status fields.
fn extend_success(operation: &mut Operation, headers: &[(&str, &str)]) {
    add_errors(operation, &[Code::PayloadTooLarge, Code::TooManyRequests]);
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    answer.description = [answer.description.as_str(), OUTCOME].join(" ").trim().into();
    answer.headers.extend(headers.iter().map(|(name, what)| ((*name).to_owned(), header(what))));
    if let Some(RefOr::T(Content { schema: Some(schema), .. })) = answer.content.get_mut(JSON) {
        *schema = AnyOfBuilder::new().item(schema.clone()).item(Ref::from_schema_name(STATUS)).into();
    }
}

fn add_errors(operation: &mut Operation, errors: &[Code]) {
    let error = |code: &Code| {
        let response = Ref::from_response_name(format!("{code:?}"));
        (code.http_status().as_u16().to_string(), RefOr::<Response>::Ref(response))
    };
    operation.responses.responses.extend(errors.iter().map(error));
}

fn header(what: &str) -> RefOr<Header> {
    let text = Object::with_type(Type::String);
    RefOr::T(HeaderBuilder::new().schema(Some(text)).description(Some(what)).build())
}

fn requirement(scheme: &str) -> SecurityRequirement {
    SecurityRequirement::new(scheme, [""; 0])
}
