//! The `filters` query parameter: JSON, a map of maps (`{"name":{"web":true}}`) or of lists (`{"name":["web"]}`).
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::error::ApiError;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a list is narrowed to: an entry passes if, for each name, one of the values fits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads the parameter. Errors on names outside `known`: a filter that is ignored would show too much.
    pub(super) fn parse(text: Option<&str>, known: &[&str]) -> Result<Filters, ApiError> {
        let text = text.unwrap_or_default();
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let invalid = || ApiError::bad_request("invalid filters: expected a JSON map of maps");
        let parsed: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| invalid())?;
        let mut filters = BTreeMap::new();
        for (name, values) in parsed {
            if !known.contains(&name.as_str()) {
                return Err(ApiError::bad_request(format!("invalid filter '{name}'")));
            }
            filters.insert(name, values_of(values).ok_or_else(invalid)?);
        }
        Ok(Filters(filters))
    }

    /// The values of a filter; empty if it was not given.
    pub(super) fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether the filter was not given or one of its values satisfies `fits`.
    pub(super) fn any(&self, name: &str, fits: impl Fn(&str) -> bool) -> bool {
        let values = self.values(name);
        values.is_empty() || values.iter().any(|value| fits(value))
    }

    /// Whether labels satisfy every `label` filter (`key` or `key=value`), as Docker does: all, not one of them.
    pub(super) fn labels(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(name).iter().all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }

    /// A boolean filter; `None` if it was not given.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.values(name) {
            [] => Ok(None),
            [value] => match value.as_str() {
                "true" | "1" => Ok(Some(true)),
                "false" | "0" => Ok(Some(false)),
                _ => Err(ApiError::bad_request(format!("invalid filter '{name}={value}'"))),
            },
            _ => Err(ApiError::bad_request(format!("invalid filter '{name}': one value at most"))),
        }
    }
}

fn values_of(values: Value) -> Option<Vec<String>> {
    match values {
        Value::Object(members) => Some(
            members.into_iter().filter(|(_, wanted)| wanted == &Value::Bool(true)).map(|(value, _)| value).collect(),
        ),
        Value::Array(values) => values.into_iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
