//! What cannot be swept.

use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::metric::Metric;
use candlewick::run::{Quiet, SweepOptions, Variant, sweep, sweep_plain};

use crate::models::two_kinds;
use crate::{Setting, from_clean};

#[test]
fn what_cannot_be_swept_is_an_error_that_says_why() {
    let model = two_kinds().remove(0);
    let setting = Setting::new(model, vec![]);
    let z = || Site::all(Hook::at(Kind::Z, 1));
    let first_z = || z().at(0);
    let try_one = |example, edits| {
        setting
            .try_sweep(&[Variant { example, edits }], &SweepOptions::default())
            .expect_err("not possible")
    };
    let cases = [
        (try_one(3, vec![from_clean(z())]), "3 prompts"),
        (try_one(0, vec![]), "without edits"),
        (
            try_one(0, vec![Edit::new(z(), Op::FromRun("cleen".into()))]),
            "`clean`",
        ),
        (
            // It cannot reach the answer, and is wrong all the same.
            try_one(
                0,
                vec![Edit::new(
                    Site::all(Hook::at(Kind::Z, 2)).at(0),
                    Op::FromRun("cleen".into()),
                )],
            ),
            "`clean`",
        ),
        (try_one(0, vec![Edit::new(first_z(), Op::Freeze)]), "`base`"),
        (
            try_one(
                0,
                vec![Edit::new(z(), Op::Replace(Value::Vector(vec![0.0; 5])))],
            ),
            "takes 6",
        ),
        (try_one(0, vec![from_clean(z().at(10))]), "10 tokens"),
        (
            try_one(
                0,
                vec![from_clean(z().at_positions([Pos::Role("S3".into())]))],
            ),
            "S1, S2",
        ),
        (try_one(0, vec![from_clean(z().heads([4]))]), "0 to 3"),
    ];
    for (error, says) in cases {
        let message = error.to_string();
        assert!(
            message.contains(says) && !message.contains('\n'),
            "{message}"
        );
    }
    let nan = Edit::with(z(), "not a number", |x| Ok((x * f64::NAN)?));
    let variants = [Variant {
        example: 2,
        edits: vec![nan],
    }];
    let error = setting.try_sweep(&variants, &SweepOptions::default());
    assert!(
        matches!(error, Err(Error::NotFiniteLogits { index: 2, .. })),
        "{error:?}"
    );
    let mut readout = setting.readout(Metric::LogitDiff);
    readout.targets.pop();
    let variants = [Variant {
        example: 2,
        edits: vec![from_clean(z())],
    }];
    let options = SweepOptions::default();
    let (model, base, sources) = (&setting.model, &setting.base, &setting.sources);
    let error = sweep(model, base, &variants, sources, &readout, &options, &Quiet);
    assert!(error.is_err());
    assert!(sweep_plain(model, base, &variants, sources, &readout).is_err());
    assert!(setting.sweep(&[]).is_empty());
}
