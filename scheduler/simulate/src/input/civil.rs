//! Dates as the Philly trace has them: `2017-10-09 06:13:03`, local time of one place.

/// Seconds since 1970-01-01 00:00:00 of a text like `2017-10-09 06:13:03`, as if every day had 24
/// hours; `None` for anything else, and for years before 1970 or after 9999.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(' ')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    if !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let february = if leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month).ok()?.checked_sub(1)?;
    if day == 0 || day > *lengths.get(before)? {
        return None;
    }
    let years: u64 = (1970..year)
        .map(|year| if leap(year) { 366 } else { 365 })
        .sum();
    let months: u64 = lengths.iter().take(before).sum();
    let days = years
        .checked_add(months)?
        .checked_add(day)?
        .checked_sub(1)?;
    days.checked_mul(86_400)?
        .checked_add(hour.checked_mul(3600)?)?
        .checked_add(minute.checked_mul(60)?)?
        .checked_add(second)
}

fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut found = [0; 3];
    for (place, digits) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *place = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn dates_become_seconds_and_what_is_no_date_does_not() {
        assert_eq!(seconds("1970-01-01 00:00:00"), Some(0));
        assert_eq!(seconds("2000-02-29 12:00:01"), Some(951_825_601));
        assert_eq!(seconds("2017-10-09 06:13:03"), Some(1_507_529_583));
        for wrong in [
            "",
            "2017-10-09",
            "2017-02-29 00:00:00",
            "2017-00-01 00:00:00",
            "2017-13-01 00:00:00",
            "2017-10-09 24:00:00",
            "2017-10-9 06:13:03",
            "2017-10-09 06:13:03Z",
            "1969-12-31 23:59:59",
            "2017-10-09 06:13:+3",
            "2017-10-09 06:13:03:04",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
