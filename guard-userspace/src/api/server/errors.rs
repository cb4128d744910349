//! What is wrong with a request and what went wrong inside the agent, as answers of one shape, and how
//! the OpenAPI document describes that shape.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::{FromRequest, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::time::timeout;
use utoipa::{
    IntoResponses, ToSchema as _,
    openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder},
};

use crate::{agent::ChangeError, api::ErrorBody};

/// What most resources answer.
pub type ApiResult<T> = Result<Json<T>, ApiError>;

/// How long a client may take to send what it asks for.
const PATIENCE_FOR_BODY: Duration = Duration::from_secs(10);

/// What a client sends, with what is wrong in the shape of every other error.
pub struct ClientInput<T>(pub T);

impl<S, T> FromRequest<S> for ClientInput<T>
where
    S: Send + Sync,
    T: FromRequest<S>,
    T::Rejection: std::fmt::Display,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let asked = timeout(PATIENCE_FOR_BODY, T::from_request(request, state)).await;
        match asked {
            Ok(asked) => asked.map(Self).map_err(|rejection| wrong(rejection).into()),
            Err(_) => Err(wrong("the request does not come to its end").into()),
        }
    }
}

/// What is wrong with a request, in axum's words.
pub fn wrong(rejection: impl std::fmt::Display) -> ChangeError {
    ChangeError::Wrong(rejection.to_string())
}

/// What went wrong inside the agent, as an answer.
pub struct ApiError(ChangeError);

impl<E: Into<ChangeError>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let (status, is_policy) = match error {
            ChangeError::Policy(_) => (StatusCode::UNPROCESSABLE_ENTITY, true),
            ChangeError::Wrong(_) => (StatusCode::BAD_REQUEST, false),
            ChangeError::Harmful(_) | ChangeError::StaysOff => (StatusCode::CONFLICT, false),
            ChangeError::Attach(_) | ChangeError::Keep(_) | ChangeError::Other(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, false)
            }
        };
        let body = ErrorBody {
            error: format!("{:#}", anyhow::Error::from(error)),
            is_policy,
        };
        (status, Json(body)).into_response()
    }
}

impl IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let described = |description: &str| {
            let schema = Ref::from_schema_name(ErrorBody::name());
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new().description(description);
            response.content("application/json", content).build().into()
        };
        BTreeMap::from([
            (
                "4XX".to_owned(),
                described("What is wrong with the request, or with the policy"),
            ),
            (
                "5XX".to_owned(),
                described("What went wrong inside the agent"),
            ),
        ])
    }
}
