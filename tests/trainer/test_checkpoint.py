"""What makes a directory a checkpoint, who may write one, and which are kept. No processes."""

import errno
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sft_trainer.batches import Plan, one_row_each
from sft_trainer.checkpoint import as_saved, commit, fence, manifest, owner, resume, state, verify
from sft_trainer.checkpoint.commit import prune, require_space
from sft_trainer.checkpoint.fence import Fence
from sft_trainer.checkpoint.manifest import Manifest, files_of_rank
from sft_trainer.checkpoint.owner import Action, Owner
from sft_trainer.checkpoint.state import TrainerState
from sft_trainer.data.packing import pack
from sft_trainer.errors import Fenced, UserError, VolumeFull, classify
from sft_trainer.history import History, after
from sft_trainer.layout import STAGING, JobFolder


def plan(**changes: Any) -> Plan:
    """Ten steps of four rows."""
    chosen: dict[str, Any] = {
        "lengths": np.arange(5, 45),
        "max_length": 64,
        "packer": pack,
        "global_batch": 4,
        "micro_batch": 2,
        "world_size": 2,
        "seed": 1,
        "max_steps": 10,
    }
    return Plan(**(chosen | changes))


def trainer_state(step: int) -> TrainerState:
    return TrainerState(
        step=step,
        total_steps=10,
        epoch=0.5,
        consumed_sequences=step * 4,
        seed=1,
        global_batch_size=4,
        batches=plan().digest,
        uid="u",
        identity="i",
        attempt=1,
        run_id="r",
        world_size=2,
        zero_stage=2,
        precision="fp32",
        packed=True,
        learning_rate=1e-3,
        loss=1.5,
        time="2026-01-01T00:00:00Z",
    )


def checkpoint(folder: Path, step: int) -> Path:
    """A committed checkpoint with one file of three megabytes."""
    directory = folder / f"step-{step}"
    (directory / "engine").mkdir(parents=True)
    (directory / "engine" / "model.pt").write_bytes(bytes(range(256)) * 12288)
    (directory / state.STATE).write_text(trainer_state(step).to_json())
    files = [path for path in directory.rglob("*") if path.is_file()]
    listing = Manifest(files=[manifest.entry(directory, path) for path in files])
    (directory / manifest.MANIFEST).write_text(listing.to_json())
    return directory


# --------------------------------------------------------------------------- manifest


def test_a_checkpoint_as_written_has_no_problem(tmp_path: Path) -> None:
    assert manifest.problem(checkpoint(tmp_path, 1), every_byte=True) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _forge(path: Path, text: str) -> None:
    (path.parent.parent / manifest.MANIFEST).write_text(text)


def _listing(path: str, size: int = 1) -> str:
    return json.dumps(
        {"schemaVersion": 1, "files": [{"path": path, "size": size, "sha256": "0", "sample": "0"}]}
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "bytes instead of 3145728"),
        (lambda path: _flip(path, 0), "has changed"),
        (lambda path: _flip(path, -1), "has changed"),
        (Path.unlink, "model.pt is missing"),
        (lambda path: (path.parent.parent / manifest.MANIFEST).write_text("{"), "no readable manifest"),
        (lambda path: _forge(path, "[" * 100_000), "no readable manifest"),
        (lambda path: _forge(path, " " * (65 << 20)), "no readable manifest"),
        (lambda path: _forge(path, _listing("../../../../../../etc/hostname")), "which is not in it"),
        (lambda path: _forge(path, _listing("/etc/hostname")), "which is not in it"),
        (lambda path: _forge(path, _listing("a" * 5000)), "is not in it"),
        (lambda path: _forge(path, _listing("a\0b")), "is not in it"),
        (lambda path: _forge(path, _listing("engine/model.pt", 10**30)), "bytes instead of"),
        (lambda path: path.unlink() or path.symlink_to("/etc/hostname"), "which is not in it"),
    ],
    ids=[
        *("cut", "first byte", "last byte", "missing", "manifest cut", "manifest nested", "manifest huge"),
        *("forged path", "forged root", "forged long name", "forged name", "forged size", "linked out"),
    ],
)
def test_damage_is_found_at_resume(damage: object, words: str, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, 1)
    damage(directory / "engine" / "model.pt")  # type: ignore[operator]
    assert words in str(manifest.problem(directory))


def test_verify_on_demand_compares_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_BLOCK", 16)
    directory = checkpoint(tmp_path, 1)
    _flip(directory / "engine" / "model.pt", 1_234_567)  # between two sampled blocks
    assert manifest.problem(directory) is None
    assert verify.main([str(directory)]) == 1
    assert verify.main([str(checkpoint(tmp_path, 2))]) == 0


def test_every_file_is_hashed_by_exactly_one_rank() -> None:
    names = ["trainer_state.json", "engine/mp_rank_00_model_states.pt", "rng-0.pt", "rng-1.pt", "rng-10.pt"]
    names += [f"engine/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(11)]
    shares = [files_of_rank(names, rank) for rank in range(11)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert shares[1] == ["rng-1.pt", "engine/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"]


def test_a_rank_hashes_its_own_share_of_the_layers() -> None:
    """Four ranks, two of them with the layers of one copy of the model between them."""
    models = [f"engine/mp_rank_0{share}_model_states.pt" for share in (0, 1)]
    states = [
        f"engine/zero_pp_rank_{copy}_mp_rank_0{share}_optim_states.pt" for copy in (0, 1) for share in (0, 1)
    ]
    names = ["trainer_state.json", *models, *states]
    shares = [files_of_rank(names, rank, tensor_ranks=2) for rank in range(4)]
    assert shares == [
        ["trainer_state.json", models[0], states[0]],
        [models[1], states[1]],
        [states[2]],
        [states[3]],
    ]


# --------------------------------------------------------------------------- which one is resumed


def test_settings_of_the_optimizer_are_those_of_this_run_and_its_state_is_the_saved_one() -> None:
    """DeepSpeed loads both: a job that was created anew with other settings would keep the old ones."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1.0, betas=(0.5, 0.6), weight_decay=10.0)
    saved = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(2)).sum().backward()
    saved.step()

    def load(*_: object, **__: object) -> tuple[str, dict[str, object]]:
        optimizer.load_state_dict(saved.state_dict())
        return "there", {}

    engine = SimpleNamespace(
        module=layer, optimizer=optimizer, load_checkpoint=load, checkpoint_engine=SimpleNamespace()
    )
    as_saved.load(engine, Path("step-1"))
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.6), 10.0)
    assert optimizer.state[layer.bias]["step"] == 1


def test_what_ranks_have_loaded_is_gathered_when_the_slowest_has() -> None:
    done: list[str] = []
    optimizer = SimpleNamespace(
        checkpoint_event_epilogue=lambda: done.append("gathered"), step=lambda: done.append("step")
    )
    with resume.waiting_for_the_slowest(optimizer, lambda: done.append("waited")):
        optimizer.checkpoint_event_epilogue()
        optimizer.step()
    assert done == ["waited", "gathered", "step"]


def test_the_newest_whole_checkpoint_is_resumed(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    found = resume.newest_whole(tmp_path)
    assert found is not None
    assert found.state.step == 100


def test_broken_checkpoints_are_passed_over_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint(tmp_path, 10)
    _cut(checkpoint(tmp_path, 20) / "engine" / "model.pt")
    (checkpoint(tmp_path, 30) / state.STATE).unlink()
    found = resume.newest_whole(tmp_path)
    assert found is not None
    assert found.state.step == 10
    assert "step-20 is not used: engine/model.pt has 3145727 bytes" in caplog.text
    assert commit.steps(tmp_path) == [10]
    assert len(list(tmp_path.glob("broken-step-*"))) == 2


def test_checkpoints_of_which_none_is_whole_end_the_run_and_keep_their_names(tmp_path: Path) -> None:
    for step in (10, 20):
        _cut(checkpoint(tmp_path / "checkpoints", step) / "engine" / "model.pt")
    with pytest.raises(
        UserError, match=r"none of the 2 checkpoints in checkpoints is whole \(step-20"
    ) as caught:
        resume.newest_whole(tmp_path / "checkpoints")
    assert caught.value.reason == "NoWholeCheckpoint"
    assert "StartFresh" in caught.value.message
    assert commit.steps(tmp_path / "checkpoints") == [20, 10]


def _add_to_everything(directory: Path) -> None:
    """What a newer trainer might write: a field more in the state, the manifest and its entries."""
    path = directory / state.STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), "newField": 1}))
    listing = json.loads((directory / manifest.MANIFEST).read_text())
    fresh = json.loads(manifest.entry(directory, path).to_json())
    files = [fresh if file["path"] == state.STATE else file for file in listing["files"]]
    listing = {**listing, "files": [{**file, "newField": 1} for file in files], "newField": 1}
    (directory / manifest.MANIFEST).write_text(json.dumps(listing))


def test_a_checkpoint_with_fields_of_a_newer_trainer_is_continued(tmp_path: Path) -> None:
    _add_to_everything(checkpoint(tmp_path, 10))
    found = resume.newest_whole(tmp_path)
    assert found is not None
    assert found.state.step == 10


def test_a_checkpoint_in_a_newer_format_names_the_image() -> None:
    newer = trainer_state(10).model_copy(update={"schema_version": state.STATE_VERSION + 1})
    with pytest.raises(UserError, match=r"newer trainer .* spec\.workers\.image") as caught:
        resume.require_known_format(newer)
    assert caught.value.reason == "CheckpointTooNew"


@pytest.mark.parametrize("name", [manifest.MANIFEST, state.STATE, "model.pt"])
def test_a_volume_that_fails_is_tried_again_and_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20)
    whole = Path.read_bytes, Path.stat

    def failing(number: int) -> object:
        def call(path: Path, **options: object) -> object:
            if path.name == name and path.parent.name in ("step-20", "engine"):
                raise OSError(errno.EIO, "Input/output error", str(path))
            return whole[number](path, **options)  # type: ignore[arg-type]

        return call

    monkeypatch.setattr(Path, "read_bytes", failing(0))
    if name == "model.pt":
        monkeypatch.setattr(Path, "stat", failing(1))
    with pytest.raises(OSError, match="Input/output error") as caught:
        resume.newest_whole(tmp_path)
    assert classify(caught.value).failure_class == "Crash"
    monkeypatch.undo()
    assert commit.steps(tmp_path) == [20, 10]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert resume.newest_whole(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"max_steps": 6}, None),
        ({"max_steps": None, "epochs": 9}, None),
        ({"micro_batch": 1, "world_size": 1}, None),
        (
            {"max_steps": 5},
            ("CheckpointBeyondEnd", "step-6 lies beyond the end of this training, which has 5 steps"),
        ),
        ({"global_batch": 8}, ("BatchesChanged", "training.globalBatchSize 4 and this run has 8")),
        ({"max_length": 128}, ("BatchesChanged", "data.maxLength")),
        ({"packer": one_row_each}, ("BatchesChanged", "data.packing")),
        ({"seed": 2}, ("BatchesChanged", "training.seed")),
        ({"lengths": np.arange(6, 46)}, ("BatchesChanged", "other rows")),
    ],
    ids=lambda value: ",".join(value or ("goes on",)),  # the same in every process: no address of a function
)
def test_a_checkpoint_is_continued_only_where_its_steps_read_the_same_rows(
    changes: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    if expected is None:
        resume.require_same_batches(trainer_state(6), plan(**changes))
        return
    with pytest.raises(UserError) as caught:
        resume.require_same_batches(trainer_state(6), plan(**changes))
    assert caught.value.reason == expected[0]
    assert expected[1] in caught.value.message


def test_what_a_dying_save_left_is_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    shutil.copytree(tmp_path / "step-10", tmp_path / f"{STAGING}abc-step-20")
    resume.remove_staged(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


class Killed(BaseException):
    """Like a SIGKILL, nothing that the trainer handles."""


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_that_is_killed_while_it_replaces_a_checkpoint_costs_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path)
    checkpoint(folder.checkpoints, 10)
    fence.claim(folder.fence, run_of(1))
    rename, done = Path.rename, []

    def killing(path: Path, target: Path) -> Path:
        if path.parent == folder.checkpoints:
            done.append(target)
            if len(done) == number:
                raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killing)
    engine = SimpleNamespace(
        module=torch.nn.Linear(1, 1), save_checkpoint=lambda to, **_: (Path(to) / commit.ENGINE_TAG).mkdir()
    )
    world = SimpleNamespace(
        patient=nullcontext,
        is_first=True,
        rank=0,
        size=1,
        barrier=lambda: None,
        gather=lambda x: [x],
        first=lambda f: f(),
    )
    with pytest.raises(Killed):
        commit.Store(folder, run_of(1), 1).commit(engine, trainer_state(10), world, 0)  # type: ignore[arg-type]
    monkeypatch.undo()
    with pytest.raises(UserError, match="another training"):
        owner.judge(folder, Owner(uid="another", identity="another"), "Resume")
    resume.remove_staged(folder.checkpoints)
    found = resume.newest_whole(folder.checkpoints)
    assert found is not None
    assert found.state.step == 10
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-10"]


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [30, 20]), (9, [30, 20, 10]), (0, [30])])
def test_the_newest_checkpoints_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    prune(tmp_path, keep)
    assert commit.steps(tmp_path) == left
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("best", "left"), [(0, [40]), (1, [40, 20]), (2, [40, 20, 10]), (9, [40, 30, 20, 10])]
)
def test_the_best_checkpoints_are_kept_beside_the_newest(best: int, left: list[int], tmp_path: Path) -> None:
    for step, loss in ((10, 1.2), (20, 1.1), (30, 1.3), (40, None), (25, None)):
        directory = checkpoint(tmp_path, step)
        history = after(History(), step, loss, 0.0) if loss else after(History(), 10, 0.1, 0.0)
        saved = trainer_state(step).model_copy(update={"history": history})
        (directory / state.STATE).write_text(saved.to_json())
    prune(tmp_path, 1, best)
    assert commit.steps(tmp_path) == left


def test_a_state_of_before_there_was_a_history_is_read(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, 10)
    old = json.loads((directory / state.STATE).read_text())
    del old["history"]
    (directory / state.STATE).write_text(json.dumps(old))
    saved = state.read(directory)
    assert saved is not None
    assert saved.history == History()


# --------------------------------------------------------------------------- space


def test_a_full_volume_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000_000))
    require_space(tmp_path, 1_400_000_000, "a checkpoint")
    with pytest.raises(
        VolumeFull, match=r"a checkpoint needs 1\.9 GiB and 1\.4 GiB are free on the workspace"
    ):
        require_space(tmp_path, 2_000_000_000, "a checkpoint")


@pytest.mark.parametrize(("free", "expected"), [(1000, VolumeFull), (10**9, RuntimeError)])
def test_torchs_words_for_a_full_volume_are_understood(
    free: int, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(expected), commit.naming_a_full_volume(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize("first", [True, False])
def test_the_rank_that_finds_the_volume_full_removes_what_was_staged(first: bool, tmp_path: Path) -> None:
    def save_checkpoint(directory: str, **_: object) -> None:
        (Path(directory) / "engine").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = SimpleNamespace(module=torch.nn.Linear(1, 1), save_checkpoint=save_checkpoint)
    world = SimpleNamespace(
        is_first=first, rank=0 if first else 1, first=lambda action: None, patient=nullcontext
    )
    folder = JobFolder(tmp_path)
    folder.checkpoints.mkdir()
    with pytest.raises(OSError, match="No space left"):
        commit.Store(folder, run_of(1), 1).commit(engine, trainer_state(1), world, 0)  # type: ignore[arg-type]
    assert list(folder.checkpoints.iterdir()) == []


# --------------------------------------------------------------------------- fence


def run_of(attempt: int, run_id: str = "mine", uid: str = "uid") -> Fence:
    return Fence(uid=uid, attempt=attempt, started="2026-01-01T00:00:00Z", run_id=run_id)


@pytest.mark.parametrize(
    ("standing", "claims"),
    [
        (None, True),
        (run_of(1, "older"), True),
        (run_of(2, "same attempt"), True),
        (run_of(3, "newer"), False),
        (run_of(3, "another job", uid="deleted"), True),
    ],
    ids=["nothing there", "older attempt", "same attempt", "newer attempt", "another job's"],
)
def test_the_last_one_started_owns_the_volume(standing: Fence | None, claims: bool, tmp_path: Path) -> None:
    path, mine = tmp_path / "job" / "fence.json", run_of(2)
    if standing:
        fence.claim(path, standing)
    if claims:
        fence.claim(path, mine)
        fence.check(path, mine)
    else:
        with pytest.raises(Fenced, match="attempt 3 started at 2026"):
            fence.claim(path, mine)
        assert fence.read(path) == standing


def test_the_fence_of_a_newer_trainer_stands(tmp_path: Path) -> None:
    path = tmp_path / "fence.json"
    path.write_text(json.dumps({**json.loads(run_of(3, "newer").to_json()), "newField": 1}))
    with pytest.raises(Fenced, match="attempt 3"):
        fence.claim(path, run_of(2))


def test_a_run_whose_fence_was_replaced_commits_no_more(tmp_path: Path) -> None:
    path = tmp_path / "fence.json"
    fence.claim(path, run_of(1, "first"))
    fence.claim(path, run_of(1, "second"))
    with pytest.raises(Fenced, match="this run of attempt 1 commits nothing more"):
        fence.check(path, run_of(1, "first"))
    path.unlink()
    with pytest.raises(Fenced, match="no run owns the volume"):
        fence.check(path, run_of(1, "second"))


# --------------------------------------------------------------------------- owner

MINE = Owner(uid="u2", identity="i2")
CASES = [
    # standing owner, work there, onExisting -> action or reason
    (None, False, "Resume", Action.CONTINUE),
    (None, False, "Fail", Action.CONTINUE),
    (MINE, True, "Resume", Action.CONTINUE),
    (MINE, True, "Fail", Action.CONTINUE),
    (MINE, True, "StartFresh", Action.CONTINUE),
    (Owner(uid="u1", identity="i2"), True, "Resume", Action.CONTINUE),
    (Owner(uid="u1", identity="i2"), True, "Fail", "is Fail"),
    (Owner(uid="u1", identity="i2"), True, "StartFresh", Action.MOVE_ASIDE),
    (Owner(uid="u1", identity="i1"), True, "Resume", "another training"),
    (Owner(uid="u1", identity="i1"), True, "Fail", "another training"),
    (Owner(uid="u1", identity="i1"), True, "StartFresh", Action.MOVE_ASIDE),
    (Owner(uid="u1", identity="i1"), False, "Resume", Action.CONTINUE),
    (Owner(uid="u2", identity="i1"), True, "Resume", "another training"),
    (None, True, "Resume", "another training"),
    (None, True, "StartFresh", Action.MOVE_ASIDE),
]


@pytest.mark.parametrize(("standing", "work", "on_existing", "expected"), CASES)
def test_who_may_continue_what_lies_there(
    standing: Owner | None, work: bool, on_existing: str, expected: Action | str
) -> None:
    def decide() -> Action:
        return owner.decide(standing, MINE, has_work=work, on_existing=on_existing)  # type: ignore[arg-type]

    if isinstance(expected, Action):
        assert decide() is expected
    else:
        with pytest.raises(UserError, match=expected) as caught:
            decide()
        assert caught.value.reason == "CheckpointsOfAnotherJob"
        assert "metadata.name" in caught.value.message
        assert "StartFresh" in caught.value.message


def test_starting_fresh_moves_the_old_work_aside_and_deletes_nothing(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    owner.take(folder, Owner(uid="uid-of-old", identity="i"), Action.CONTINUE, "t")
    checkpoint(folder.checkpoints, 5)
    folder.export.mkdir()
    action = owner.judge(folder, MINE, "StartFresh")
    owner.take(folder, MINE, action, "20260101T000000Z")
    assert json.loads(folder.owner.read_text()) == {"uid": "u2", "identity": "i2"}
    assert not folder.checkpoints.exists()
    assert (tmp_path / "checkpoints.20260101T000000Z-uid-of-o" / "step-5").is_dir()
    assert (tmp_path / "export.20260101T000000Z-uid-of-o").is_dir()
    assert owner.judge(folder, MINE, "Resume") is Action.CONTINUE


def test_the_story_of_a_job_that_left_no_work_is_not_that_of_the_next(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "bot")
    first, second = Owner(uid="u-of-first", identity="i"), Owner(uid="u-of-second", identity="i")
    owner.take(folder, first, Action.CONTINUE, "t")
    folder.report.mkdir()
    (folder.report / "metrics.jsonl").write_text("curves")
    owner.take(folder, first, owner.judge(folder, first, "Resume"), "20260101T000000Z")
    assert folder.report.exists(), "its own next attempt goes on with it"
    owner.take(folder, second, owner.judge(folder, second, "Resume"), "20260101T000000Z")
    assert not folder.report.exists()
    assert (folder.root / "report.20260101T000000Z-u-of-fir" / "metrics.jsonl").read_text() == "curves"


def test_an_export_alone_is_work_that_another_job_may_not_replace(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    owner.take(folder, Owner(uid="u1", identity="i1"), Action.CONTINUE, "t")
    folder.export.mkdir()
    with pytest.raises(UserError):
        owner.judge(folder, MINE, "Resume")
