//! Looks up the causes of an error, and says them without the words of a library.

use std::{error::Error, io, iter};

use serde_json::error::Category;

/// The error, and each of its causes in order.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (**error).source()
    })
}

/// The message of the last cause, without the errors around it.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

/// The first I/O error among the causes.
pub fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Why a request over HTTP failed, in plain words. An I/O error is the system's own text.
pub fn http_failure(error: &(dyn Error + 'static)) -> String {
    const CUT_OFF: &str = "it closed the connection before the end of its answer";
    let json = chain(error).find_map(|error| error.downcast_ref::<serde_json::Error>());
    if let Some(error) = json {
        return match error.classify() {
            Category::Data => "its fields are others than expected".to_owned(),
            Category::Eof | Category::Io | Category::Syntax => "it is not JSON".to_owned(),
        };
    }
    if let Some(error) = io_error(error) {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => CUT_OFF.to_owned(),
            _ => innermost(error),
        };
    }
    let http = chain(error).find_map(|error| error.downcast_ref::<hyper::Error>());
    match http {
        Some(error) if error.is_parse() => "its answer is not HTTP".to_owned(),
        Some(error)
            if error.is_incomplete_message() || error.is_closed() || error.is_canceled() =>
        {
            CUT_OFF.to_owned()
        }
        Some(error) if error.is_timeout() => "it did not answer in time".to_owned(),
        _ => innermost(error),
    }
}
