//! Aligned columns.

use super::output::{Paint, Style, clean};

/// A cell: text and style.
pub type Cell = (String, Style);

/// A cell without a style.
pub fn plain(text: impl AsRef<str>) -> Cell {
    (clean(text.as_ref()), Style::Plain)
}

/// A cell with a style.
pub fn styled(text: impl AsRef<str>, style: Style) -> Cell {
    (clean(text.as_ref()), style)
}

/// A table: each column as wide as its widest cell, two spaces between columns, nothing cut off or
/// wrapped, so that its lines stay lines in a pipe.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
    /// Columns that are flush right (figures).
    right: &'static [usize],
    indent: usize,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        let heading = headings
            .iter()
            .map(|text| styled(text, Style::Bold))
            .collect();
        Self {
            rows: vec![heading],
            right: &[],
            indent: 0,
        }
    }

    /// A table without headings, indented.
    pub fn bare(indent: usize) -> Self {
        Self {
            rows: Vec::new(),
            right: &[],
            indent,
        }
    }

    /// Sets these columns, counted from 0, flush right.
    pub fn right(mut self, columns: &'static [usize]) -> Self {
        self.right = columns;
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether there is nothing but headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The lines, each with a line break.
    pub fn render(&self, paint: Paint) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, (text, _)) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.chars().count());
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(&" ".repeat(self.indent));
            for (column, ((text, style), width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                let text = paint.apply(*style, text);
                let last = column + 1 == row.len();
                if self.right.contains(&column) {
                    out.push_str(&pad);
                    out.push_str(&text);
                } else {
                    out.push_str(&text);
                    if !last {
                        out.push_str(&pad);
                    }
                }
                if !last {
                    out.push_str("  ");
                }
            }
            // Empty last cells leave padding that nobody needs.
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_colour() {
        let mut table = Table::new(&["NAME", "HITS", "WHY"]).right(&[1]);
        table.row(vec![plain("a"), plain("1"), plain("")]);
        table.row(vec![
            styled("longer", Style::Bad),
            plain("12,345"),
            plain("x y"),
        ]);
        assert_eq!(
            table.render(Paint(false)),
            "NAME      HITS  WHY\n\
             a            1\n\
             longer  12,345  x y\n"
        );
        let coloured = table.render(Paint(true));
        assert!(
            coloured.contains("\x1b[1;31mlonger\x1b[0m  12,345"),
            "{coloured:?}"
        );
    }

    #[test]
    fn a_cell_cannot_break_the_table() {
        let mut table = Table::bare(2);
        table.row(vec![plain("a\nb"), plain("c")]);
        assert_eq!(table.render(Paint(false)), "  a\u{fffd}b  c\n");
    }
}
