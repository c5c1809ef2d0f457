//! The allow-list: a request's JSON against the shape that is implemented. What is not in the shape and not at its
//! default (null, false, 0, empty, or an object of nothing else) is refused with its path. Docker's clients send every
//! field there is, so that "unknown" alone says nothing.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use serde_json::Value;

/// What is implemented of a value.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// All of it.
    Any,
    /// These fields.
    Object(&'static [(&'static str, Shape)]),
    /// A list of such elements.
    List(&'static Shape),
    /// These words, and why no others.
    Words(&'static [&'static str], &'static str),
    /// `true` changes nothing.
    True,
}

/// A value that is not implemented. The text names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsupported {
    /// A whole field.
    #[error("unsupported field {path}{}: it is not supported yet, leave it out", option_of(path))]
    Field { path: String },
    /// A value of a field.
    #[error("unsupported value {value} of {path}: it is not supported, {reason}")]
    Value { path: String, value: String, reason: &'static str },
}

/// Why a word other than the default is refused, where nothing more can be said.
const ONLY_DEFAULT: &str = "only the default is";

/// Bytes of a refused value that are repeated in the refusal: it is one line for people.
const SHOWN_VALUE_BYTES: usize = 60;

/// The path of the first value in an object that is not at its default: `Resources` alone names no option.
fn path_to_value(path: String, value: &Value) -> String {
    match value.as_object().and_then(|members| members.iter().find(|(_, member)| !is_default(member))) {
        Some((name, member)) => path_to_value(format!("{path}.{name}"), member),
        None => path,
    }
}

/// Checks a value against its shape.
pub(super) fn check(value: &Value, shape: &Shape) -> Result<(), Unsupported> {
    check_at(value, shape, &mut String::new())
}

fn check_at(value: &Value, shape: &Shape, path: &mut String) -> Result<(), Unsupported> {
    if is_default(value) {
        return Ok(());
    }
    match (shape, value) {
        (Shape::Any, _) => Ok(()),
        (Shape::Object(fields), Value::Object(members)) => members.iter().try_for_each(|(name, member)| {
            let known = fields.iter().find(|(field, _)| field == name).map(|(_, shape)| shape);
            descend(path, name, |path| match known {
                Some(shape) => check_at(member, shape, path),
                None if is_default(member) => Ok(()),
                None => Err(Unsupported::Field { path: path_to_value(path.clone(), member) }),
            })
        }),
        (Shape::List(element), Value::Array(values)) => values.iter().enumerate().try_for_each(|(index, value)| {
            let length = path.len();
            path.push_str(&format!("[{index}]"));
            let result = check_at(value, element, path);
            path.truncate(length);
            result
        }),
        (Shape::Words(words, reason), Value::String(word)) if !words.contains(&word.as_str()) => {
            Err(refused(path, value, reason))
        }
        // What has the wrong type is refused when the request is read into its structure; these two have none there.
        (Shape::True, Value::String(_) | Value::Array(_) | Value::Object(_) | Value::Number(_)) => {
            Err(refused(path, value, ONLY_DEFAULT))
        }
        (Shape::Words(..), Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            Err(refused(path, value, ONLY_DEFAULT))
        }
        _ => Ok(()),
    }
}

fn descend<T>(path: &mut String, name: &str, visit: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
    let result = visit(path);
    path.truncate(length);
    result
}

fn refused(path: &str, value: &Value, reason: &'static str) -> Unsupported {
    let mut value = value.to_string();
    if value.len() > SHOWN_VALUE_BYTES {
        let end = (0..=SHOWN_VALUE_BYTES).rev().find(|&at| value.is_char_boundary(at)).unwrap_or(0);
        value.truncate(end);
        value.push_str("...");
    }
    Unsupported::Value { path: path.to_owned(), value, reason }
}

/// Whether a value says no more than its absence would.
pub(super) fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(members) => members.values().all(is_default),
    }
}

/// Removes the members that are null: to Docker's clients null and absent are the same.
pub(super) fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(strip_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// The option of the command line that sets a field, for the fields that users set most.
fn option_of(path: &str) -> &'static str {
    let field = path.rsplit('.').next().unwrap_or_default();
    let field = field.split('[').next().unwrap_or_default();
    match field {
        "Mounts" => " (--mount)",
        "Ports" => " (--publish)",
        "Secrets" => " (--secret)",
        "Configs" => " (--config)",
        "NanoCPUs" => " (--limit-cpu)",
        "MemoryBytes" => " (--limit-memory)",
        "User" => " (--user)",
        "WorkingDir" => " (--workdir)",
        "TTY" | "Tty" => " (--tty)",
        "Init" => " (--init)",
        "Attachable" => " (--attachable)",
        "Internal" => " (--internal)",
        "Ingress" => " (--ingress)",
        "EnableIPv6" => " (--ipv6)",
        "IPRange" => " (--ip-range)",
        "AuxiliaryAddresses" => " (--aux-address)",
        "AutoLockManagers" => " (--autolock)",
        "Aliases" => " (alias=)",
        _ => "",
    }
}
