//! Reads the sections and keys of a TOML document, and remembers everything that is wrong with them.
//!
//! The readers return a default in place of a bad value, so that one pass finds every error.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{ConfigError, Hint, Place, Problem};
use super::value;

/// The text being read, and the errors found so far.
#[derive(Debug)]
pub(super) struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    line_starts: Vec<usize>,
    pub(super) errors: Vec<ConfigError>,
}

/// One table of the document. Keys that nobody asked for are reported by [`Reader::finish`].
#[derive(Debug)]
pub(super) struct Section<'t> {
    /// As written, for messages: `[nic.eth0]`.
    pub(super) title: String,
    /// The last part of the title.
    pub(super) name: String,
    /// Where its header stands.
    pub(super) span: Range<usize>,
    table: Option<&'t DeTable<'t>>,
    asked: Vec<&'static str>,
}

/// A text of the document and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Text<'t> {
    pub(super) text: &'t str,
    pub(super) span: Range<usize>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, text, line_starts, errors: Vec::new() }
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        let offset = offset.min(self.text.len());
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1];
        let column = self.text.as_bytes()[start..offset].iter().filter(|b| (**b & 0xc0) != 0x80);
        Place { line: line as u32, column: column.count() as u32 + 1 }
    }

    pub(super) fn report(&mut self, span: &Range<usize>, problem: Problem) {
        let place = self.place(span.start);
        self.report_at(place, problem);
    }

    pub(super) fn report_at(&mut self, place: Place, problem: Problem) {
        self.errors.push(ConfigError { file: self.file.to_owned(), place, problem });
    }

    /// The section `title` at the top of the document; empty when it is not there.
    pub(super) fn section(&mut self, root: &mut Section<'t>, title: &'static str) -> Section<'t> {
        let mut section = Section {
            title: format!("[{title}]"),
            name: title.to_owned(),
            span: 0..0,
            table: None,
            asked: Vec::new(),
        };
        if let Some((key, value)) = root.entry(title) {
            section.span = key;
            section.table = self.table(title, value);
        }
        section
    }

    /// The sections `[kind.NAME]`, in the order of the document.
    pub(super) fn named_sections(
        &mut self,
        root: &mut Section<'t>,
        kind: &'static str,
    ) -> Vec<Section<'t>> {
        let Some((_, value)) = root.entry(kind) else { return Vec::new() };
        let Some(table) = self.table(kind, value) else { return Vec::new() };
        let mut sections = Vec::with_capacity(table.len());
        for (key, value) in table {
            let title = format!("{kind}.{}", key.get_ref());
            let table = self.table(&title, value);
            sections.push(Section {
                title: format!("[{title}]"),
                name: key.get_ref().to_string(),
                span: key.span(),
                table,
                asked: Vec::new(),
            });
        }
        sections.sort_by_key(|section| section.span.start);
        sections
    }

    fn table(&mut self, title: &str, value: &'t Spanned<DeValue<'t>>) -> Option<&'t DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let found = kind_of(value.get_ref());
            self.report(
                &value.span(),
                Problem::WrongType { key: title.to_owned(), found, wanted: "it as a section" },
            );
        }
        table
    }

    /// Reports the keys of the section that nobody asked for.
    pub(super) fn finish(&mut self, section: Section<'t>) {
        for key in section.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if !section.asked.contains(&name) {
                let hint = Hint::new(name, &section.asked);
                let (section, key_name) = (section.title.clone(), name.to_owned());
                self.report(&key.span(), Problem::UnknownKey { section, key: key_name, hint });
            }
        }
    }

    pub(super) fn text(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
    ) -> Option<Text<'t>> {
        let value = section.value(key)?;
        self.as_text(key, value)
    }

    /// A text that must be there; `example` shows how it could look.
    pub(super) fn required_text(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
    ) -> Option<Text<'t>> {
        if section.value(key).is_none() {
            self.missing(section, key, example);
        }
        self.text(section, key)
    }

    /// A list of texts; a single text counts as a list of one.
    pub(super) fn texts(&mut self, section: &mut Section<'t>, key: &'static str) -> Vec<Text<'t>> {
        let Some(value) = section.value(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(items) if items.is_empty() => {
                self.report(&value.span(), Problem::EmptyList { key: key.to_owned() });
                Vec::new()
            }
            DeValue::Array(items) => {
                items.iter().filter_map(|item| self.as_text(key, item)).collect()
            }
            _ => self.as_text(key, value).into_iter().collect(),
        }
    }

    /// A list of texts that must be there.
    pub(super) fn required_texts(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
    ) -> Vec<Text<'t>> {
        if section.value(key).is_none() {
            self.missing(section, key, example);
        }
        self.texts(section, key)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let Text { text, span } = self.text(section, key)?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let hint = Hint::new(text, choices.iter().map(|(name, _)| name));
            self.report(
                &span,
                Problem::UnknownChoice { key: key.to_owned(), found: text.to_owned(), hint },
            );
        }
        found.map(|(_, choice)| *choice)
    }

    pub(super) fn flag(&mut self, section: &mut Section<'t>, key: &'static str) -> Option<bool> {
        let value = section.value(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        flag
    }

    pub(super) fn number(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let value = section.value(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a whole number");
            return None;
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.out_of_range(key, value, integer, range.start(), range.end());
        }
        number
    }

    /// A size in bytes: a whole number, or a text such as `"64KiB"`.
    pub(super) fn size(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<usize> {
        let value = section.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            if value.get_ref().is_integer() {
                return self.number(section, key, range).map(|size| size as usize);
            }
            self.wrong_type(key, value, SIZE);
            return None;
        };
        let Some(size) = value::size(text) else {
            self.bad_value(key, text, &value.span(), SIZE);
            return None;
        };
        let fits = u32::try_from(size).ok().filter(|size| range.contains(size));
        if fits.is_none() {
            self.out_of_range(key, value, size, range.start(), range.end());
        }
        fits.map(|size| size as usize)
    }

    pub(super) fn duration(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let Text { text, span } = self.text(section, key)?;
        let Some(duration) = value::duration(text) else {
            self.bad_value(
                key,
                text,
                &span,
                r#"a whole number and a unit, such as "500ms", "10s", "2m" or "1h""#,
            );
            return None;
        };
        if !range.contains(&duration) {
            let (least, most) = (value::show(*range.start()), value::show(*range.end()));
            let problem =
                Problem::OutOfRange { key: key.to_owned(), found: text.to_owned(), least, most };
            self.report(&span, problem);
            return None;
        }
        Some(duration)
    }

    /// An address with a port, both usable for a flow that passes through a NIC.
    pub(super) fn socket_address(
        &mut self,
        key: &'static str,
        item: &Text<'_>,
    ) -> Option<SocketAddr> {
        let Ok(address) = item.text.parse::<SocketAddr>() else {
            self.bad_value(
                key,
                item.text,
                &item.span,
                r#"ADDRESS:PORT, such as "192.0.2.1:80" or "[2001:db8::1]:80""#,
            );
            return None;
        };
        if address.port() == 0 {
            self.report(&item.span, Problem::PortZero { address });
            return None;
        }
        if let Err(problem) = value::usable(address.ip()) {
            self.report(&item.span, problem);
            return None;
        }
        Some(SocketAddr::new(address.ip(), address.port()))
    }

    pub(super) fn bad_value(
        &mut self,
        key: &str,
        found: &str,
        span: &Range<usize>,
        wanted: &'static str,
    ) {
        let problem = Problem::BadValue { key: key.to_owned(), found: found.to_owned(), wanted };
        self.report(span, problem);
    }

    fn as_text(&mut self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<Text<'t>> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "text in quotes");
        }
        text.map(|text| Text { text, span: value.span() })
    }

    fn missing(&mut self, section: &Section<'t>, key: &'static str, example: &'static str) {
        let problem = Problem::MissingKey { section: section.title.clone(), key, example };
        self.report(&section.span, problem);
    }

    fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &'static str) {
        let found = kind_of(value.get_ref());
        self.report(&value.span(), Problem::WrongType { key: key.to_owned(), found, wanted });
    }

    fn out_of_range(
        &mut self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        found: impl ToString,
        least: impl ToString,
        most: impl ToString,
    ) {
        let problem = Problem::OutOfRange {
            key: key.to_owned(),
            found: found.to_string(),
            least: least.to_string(),
            most: most.to_string(),
        };
        self.report(&value.span(), problem);
    }
}

impl<'t> Section<'t> {
    /// The document itself.
    pub(super) fn root(table: &'t DeTable<'t>) -> Self {
        Self {
            title: "the file".to_owned(),
            name: String::new(),
            span: 0..0,
            table: Some(table),
            asked: Vec::new(),
        }
    }

    pub(super) fn value(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.entry(key).map(|(_, value)| value)
    }

    fn entry(&mut self, key: &'static str) -> Option<(Range<usize>, &'t Spanned<DeValue<'t>>)> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.table?.get_key_value(key).map(|(key, value)| (key.span(), value))
    }
}

/// The kind of a value, with its article.
fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

const SIZE: &str = r#"a size, such as 16384, "64KiB" or "1MiB""#;
