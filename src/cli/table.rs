//! Tables as Docker prints them: columns as wide as their widest cell and three spaces.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

/// Spaces between two columns.
const GAP: usize = 3;

/// Characters of an id that are shown.
const SHORT_ID: usize = 12;

/// The rows under their heads.
pub(super) fn render<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let head = heads.map(str::to_owned);
    let all: Vec<&[String; N]> = std::iter::once(&head).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let lines = all.iter().map(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// An id's first characters.
pub(super) fn short_id(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

/// A word with its first letter large.
pub(super) fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["dt0zvqn0saez".to_owned(), "web".to_owned(), String::new()]];
        assert_eq!(render(["ID", "NAME", "PORTS"], &rows), "ID             NAME   PORTS\ndt0zvqn0saez   web");
    }
}
