//! Days and civil dates in UTC: the little of a calendar that generated
//! values and access logs need.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 now.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

/// The days from 1970-01-01 to a civil date.
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years counted from March put the leap day last; eras of 400 years all
    // have 146,097 days.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The civil date (year, month, day) so many days after 1970-01-01.
pub fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A day as `2026-03-01`.
pub fn date(day: i64) -> String {
    let (year, month, day) = civil(day);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A moment as `2026-03-01T12:30:00Z`.
pub fn timestamp(seconds: i64) -> String {
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!(
        "{}T{hour:02}:{minute:02}:{second:02}Z",
        date(seconds.div_euclid(86_400))
    )
}

/// Seconds since 1970 of a moment as RFC 3339 has it, with its fraction.
pub fn parse_rfc3339(text: &str) -> Option<f64> {
    let (date, time) = text.split_once(['T', ' '])?;
    let mut fields = date.splitn(3, '-').map(|field| field.parse::<i64>().ok());
    let day = days(fields.next()??, fields.next()??, fields.next()??);
    let zone_at = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone_at);
    Some(day as f64 * 86_400.0 + clock_seconds(clock)? - zone_seconds(zone)?)
}

/// Seconds since 1970 of a moment as access logs have it:
/// `10/Oct/2000:13:55:36 -0700`.
pub fn parse_common_log(text: &str) -> Option<f64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (moment, zone) = text.split_once(' ').unwrap_or((text, ""));
    let (date, clock) = moment.split_once(':')?;
    let mut fields = date.splitn(3, '/');
    let day = fields.next()?.parse().ok()?;
    let month_name = fields.next()?;
    let month = MONTHS.iter().position(|name| *name == month_name)? as i64 + 1;
    let year = fields.next()?.parse().ok()?;
    Some(days(year, month, day) as f64 * 86_400.0 + clock_seconds(clock)? - zone_seconds(zone)?)
}

fn clock_seconds(clock: &str) -> Option<f64> {
    let mut fields = clock.splitn(3, ':');
    let hour: f64 = fields.next()?.parse().ok()?;
    let minute: f64 = fields.next()?.parse().ok()?;
    let second: f64 = fields
        .next()
        .map_or(Some(0.0), |second| second.parse().ok())?;
    Some(hour * 3_600.0 + minute * 60.0 + second)
}

/// `Z`, ``, `+0200` or `+02:00` as seconds east of Greenwich.
fn zone_seconds(zone: &str) -> Option<f64> {
    let sign = match zone.bytes().next() {
        None | Some(b'Z' | b'z') => return Some(0.0),
        Some(b'+') => 1.0,
        Some(b'-') => -1.0,
        Some(_) => return None,
    };
    let digits: String = zone[1..].chars().filter(|c| *c != ':').collect();
    let (hours, minutes) = digits.split_at_checked(2)?;
    Some(sign * (hours.parse::<f64>().ok()? * 3_600.0 + minutes.parse::<f64>().ok()? * 60.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_inverse_over_centuries() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 2, 29), 11_016);
        let mut expected = civil(-200_000);
        for day in -200_000..200_000 {
            let (year, month, of_month) = civil(day);
            assert_eq!(days(year, month, of_month), day);
            assert!((year, month, of_month) >= expected);
            expected = (year, month, of_month);
        }
    }

    #[test]
    fn reads_the_moments_of_logs() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:01.5Z"), Some(1.5));
        assert_eq!(
            parse_rfc3339("2026-03-01T12:30:00+01:00"),
            parse_rfc3339("2026-03-01T11:30:00Z")
        );
        assert_eq!(
            parse_common_log("10/Oct/2000:13:55:36 -0700"),
            parse_rfc3339("2000-10-10T20:55:36Z")
        );
        assert_eq!(timestamp(971_211_336), "2000-10-10T20:55:36Z");
        for text in [
            "",
            "yesterday",
            "10/Okt/2000:13:55:36 +0000",
            "2026-03T12:00:00Z",
        ] {
            assert_eq!(
                parse_rfc3339(text).or(parse_common_log(text)),
                None,
                "{text}"
            );
        }
    }
}
