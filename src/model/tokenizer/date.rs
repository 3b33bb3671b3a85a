//! A day, for chat templates that print it.

use std::str::FromStr;

use crate::error::{Error, Result};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// A day of the Gregorian calendar, written `2024-07-26`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

impl FromStr for Date {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Parse {
            what: "a date",
            text: text.into(),
            reason: "it is written as in 2024-07-26".into(),
        };
        let parts: Vec<&str> = text.split('-').collect();
        let &[year, month, day] = parts.as_slice() else {
            return Err(bad());
        };
        let number = |part: &str, digits: usize| {
            let is_plain = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u32>().ok().filter(|_| is_plain)
        };
        let (Some(year), Some(month), Some(day)) =
            (number(year, 4), number(month, 2), number(day, 2))
        else {
            return Err(bad());
        };
        let is_leap =
            year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let days = match month {
            2 if is_leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            _ => 0,
        };
        if year == 0 || !(1..=days).contains(&day) {
            return Err(bad());
        }
        Ok(Date { year, month, day })
    }
}

impl Date {
    /// The day in the words of C's `strftime`, at midnight; a directive that we do not know stays as it is written.
    pub fn formatted(self, format: &str) -> String {
        let Date { year, month, day } = self;
        let month_name = MONTHS[month as usize - 1];
        let day_name = DAYS[self.weekday()];
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let directive = rest.next();
            let unpadded = directive == Some('-');
            let directive = if unpadded { rest.next() } else { directive };
            let number = |n: u32| {
                if unpadded {
                    n.to_string()
                } else {
                    format!("{n:02}")
                }
            };
            match directive {
                Some('a') => text.push_str(&day_name[..3]),
                Some('A') => text.push_str(day_name),
                Some('b' | 'h') => text.push_str(&month_name[..3]),
                Some('B') => text.push_str(month_name),
                Some('d') => text.push_str(&number(day)),
                Some('e') => text.push_str(&format!("{day:2}")),
                Some('F') => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
                Some('H' | 'M' | 'S') => text.push_str(&number(0)),
                Some('I') => text.push_str("12"),
                Some('m') => text.push_str(&number(month)),
                Some('p') => text.push_str("AM"),
                Some('y') => text.push_str(&number(year % 100)),
                Some('Y') => text.push_str(&year.to_string()),
                Some('%') => text.push('%'),
                Some(other) => text.extend(['%', other]),
                None => text.push('%'),
            }
        }
        text
    }

    /// 0 is Sunday (Sakamoto's rule).
    fn weekday(self) -> usize {
        const OF_MONTH: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = self.year - u32::from(self.month < 3);
        let days = year + year / 4 - year / 100
            + year / 400
            + OF_MONTH[self.month as usize - 1]
            + self.day;
        days as usize % 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_written_as_strftime_writes_it() {
        let date: Date = "2024-07-06".parse().unwrap();
        assert_eq!(date.formatted("%d %b %Y"), "06 Jul 2024");
        assert_eq!(
            date.formatted("%A, %B %-d, %y 100%% %q"),
            "Saturday, July 6, 24 100% %q"
        );
        let leap: Date = "2000-02-29".parse().unwrap();
        assert_eq!(leap.formatted("%a %F"), "Tue 2000-02-29");
        for bad in [
            "2023-02-29",
            "2024-13-01",
            "2024-7-6",
            "today",
            "2024-00-10",
            "0000-01-01",
        ] {
            assert!(bad.parse::<Date>().is_err(), "{bad}");
        }
    }
}
