"""Recorded answers under other scorers than before.

The answers of every evaluation stay in the run folder, so that another scorer (or a changed file)
needs no model: all recorded answers are scored again.
"""

from __future__ import annotations

from omegaconf import OmegaConf

from data_prep.files import read_json, write_json, write_text
from data_prep.stream import Stream
from eval.matrix import append_scores
from eval.predictions import chunk_scores, score_again
from eval.routing.stage_ablation import write_ablation
from eval.scorers.registry import Scorer
from recipes.config.problems import shown
from recipes.config.schema import Recipe
from recipes.run.scoring.named_scorers import named_scorers, scorer_hashes, scorers_changed
from recipes.run.session import RunError, Session
from recipes.run_folder.layout import OtherWeightsLayout, RunLayout
from recipes.run_folder.manifest import read_manifest
from strlora_tuner.methods.slow_weights.options import KINDS


def bring_scores_up_to_date(session: Session) -> None:
    """Score all recorded answers again where the scorers changed, and record the present ones.

    The note comes last: killed before it, the next start does it again.

    Raises:
        RunError: recorded answers that cannot be scored.
    """
    recipe, layout, stream = session.recipe, session.layout, session.stream
    if not scorers_changed(layout, recipe):
        return
    evaluated = [record.index for record in session.state.chunks if record.evaluated]
    if evaluated:
        session.say("other scorers than before: the recorded answers are scored again")
    try:
        scorers = named_scorers(recipe, stream)
        beside = [OtherWeightsLayout(layout.root, kind) for kind in KINDS]
        for index in evaluated:
            for each in (layout, *(other for other in beside if other.evaluated(index))):
                score_again(each.predictions(index), stream.root, scorers)
                scores = chunk_scores(each.predictions(index), stream.root, index, scorers)
                write_json(each.scores(index), scores)
                append_scores(each.matrix, index, scores)
        _score_ablations(layout, recipe, stream, scorers)
    except ValueError as error:
        raise RunError(f"{error}. Mend the scorer and give the same command again") from error
    manifest = read_manifest(layout)
    before, now = manifest["recipe"]["eval"].get("scorer"), recipe.eval.scorer
    hashes = scorer_hashes(recipe)
    if evaluated:
        changed = f"{shown(before)} {manifest.get('scorers', {})} -> {shown(now)} {hashes}"
        manifest["sessions"][-1].setdefault("changes", {})["eval.scorer"] = changed
    manifest["recipe"]["eval"]["scorer"], manifest["scorers"] = now, hashes
    # Both files name the scorer; the manifest, which decides, comes last.
    write_text(layout.recipe, OmegaConf.to_yaml(OmegaConf.create(manifest["recipe"])))
    write_json(layout.manifest, manifest)


def _score_ablations(
    layout: RunLayout, recipe: Recipe, stream: Stream, scorers: dict[str, Scorer]
) -> None:
    path = layout.root / "ablation.json"
    for folder in layout.root.glob("ablation/*/predictions"):
        score_again(folder, stream.root, scorers)
    if path.is_file():
        measured = read_json(path)
        names = [entry["name"] for entry in measured["ablations"]]
        write_ablation(layout.root, stream.root, measured["chunk"], names, recipe.eval.scorer)
