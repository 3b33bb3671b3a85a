//! The smallest method, and that it has what every method has.

use candlewick::hooks::{Hook, Kind};
use candlewick::prelude::*;
use candlewick::run::{Logits, Progress, Request, run};
use candlewick::scores::{Cell, ExampleScores, ScoresMeta};
use candlewick::spec::ModelSpec;
use candlewick::task::Task;

/// The toy: how long the residual stream of the clean run is at each layer's end, at the last token.
#[derive(Debug)]
pub struct StreamLength;

struct Lengths<'a> {
    on: Subject<'a>,
    cells: Vec<Cell>,
}

impl Method for StreamLength {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "stream_length",
            "length",
            "none",
            Direction::Direct,
            task.seed,
        )
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs::default()
    }

    fn check(&self, _: &ModelSpec, _: &Task) -> Result<()> {
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Result<Box<dyn Prepared + 'a>> {
        let cell = |layer: usize| Cell {
            component: Kind::ResidPost.name().into(),
            layer: Some(layer as u32),
            ..Cell::default()
        };
        Ok(Box::new(Lengths {
            on,
            cells: (0..on.model.spec.n_layers).map(cell).collect(),
        }))
    }
}

impl Prepared for Lengths<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        4 * length * self.on.model.spec.n_layers * self.on.model.spec.d_model
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        Ok(Cost::passes(unit.items.len() as f64))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let hooks: Vec<Hook> = (0..model.spec.n_layers)
            .map(|layer| Hook::at(Kind::ResidPost, layer))
            .collect();
        let prompts: Vec<_> = unit
            .items
            .iter()
            .map(|&i| task.pairs()[i].clean.clone())
            .collect();
        let request = Request {
            capture: &hooks,
            logits: Logits::None,
            ..Request::default()
        };
        let cache = run(model, &prompts, &request)?.cache;
        let mut examples = Vec::new();
        for (i, &item) in unit.items.iter().enumerate() {
            let mut one = candlewick::methods::method::unmeasured(task, item, 0.0, 0.0);
            for &hook in &hooks {
                let stream = cache.get(hook)?.get(i)?; // [pos, d_model]
                let last: Vec<f32> = stream.get(prompts[i].len() - 1)?.to_vec1()?;
                one.values.push(
                    last.iter()
                        .map(|&x| f64::from(x) * f64::from(x))
                        .sum::<f64>()
                        .sqrt(),
                );
            }
            one.cells = (0..hooks.len() as u32).collect();
            examples.push(one);
        }
        Ok(examples)
    }
}
