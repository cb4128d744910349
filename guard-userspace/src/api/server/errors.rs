//! Error answers: wrong requests and failures of the agent have the same body, which the OpenAPI document describes.

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

/// The answer of most resources.
pub type ApiResult<T> = Result<Json<T>, ApiError>;

/// How long a client may take to send its request body.
const PATIENCE_FOR_BODY: Duration = Duration::from_secs(10);

/// An extractor that turns axum's rejections into the body of all other errors.
pub struct ClientInput<T>(pub T);

impl<S, T> FromRequest<S> for ClientInput<T>
where
    S: Send + Sync,
    T: FromRequest<S>,
    T::Rejection: std::fmt::Display,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let input = timeout(PATIENCE_FOR_BODY, T::from_request(request, state)).await;
        match input {
            Ok(input) => input.map(Self).map_err(|rejection| wrong(rejection).into()),
            Err(_) => {
                let seconds = PATIENCE_FOR_BODY.as_secs();
                Err(wrong(format!(
                    "the request body was not complete after {seconds} s"
                ))
                .into())
            }
        }
    }
}

/// The error for a wrong request, in axum's words.
pub fn wrong(rejection: impl std::fmt::Display) -> ChangeError {
    ChangeError::Wrong(rejection.to_string())
}

/// An error of a request or of the agent, as an answer.
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
            ChangeError::Lockout(_) | ChangeError::StaysDetached => (StatusCode::CONFLICT, false),
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
                described("The request or the policy is wrong"),
            ),
            ("5XX".to_owned(), described("The agent failed")),
        ])
    }
}
