"""Fine-tuning on scikit-learn's digits, and every promise of its docstring."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bevel import load, optimize, to_torch
from bevel.backends.onnxruntime import Session
from bevel.backends.torch.finetuning import finetune
from bevel.errors import TrainingDiverged, UsageError

TRAIN = 1200


class Net(nn.Module):
    def __init__(self, width=16, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16 * width, 10)

    def forward(self, image):
        return self.head(self.dropout(functional.relu(self.norm(self.conv(image)))).flatten(1))


def net(width=16, seed=0, **options):
    torch.manual_seed(seed)
    return Net(width, **options)


def digits():
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


IMAGES, LABELS = digits()
HELD_OUT = IMAGES[TRAIN:], LABELS[TRAIN:]


def loader(*, labelled=False, rows=TRAIN, **options):
    parts = (IMAGES[:rows], LABELS[:rows]) if labelled else (IMAGES[:rows],)
    return DataLoader(TensorDataset(*parts), batch_size=100, shuffle=True, **options)


def accuracy(module):
    assert not module.training
    assert not torch.is_grad_enabled()
    return (module(HELD_OUT[0]).argmax(1) == HELD_OUT[1]).float().mean().item()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher():
    module = net()
    finetune(module, None, loader(labelled=True), labels=-1, epochs=6, lr=1e-2)
    return module.eval()


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def agreement(module, teacher):
    with torch.no_grad():
        answers = [each.eval()(HELD_OUT[0]).argmax(1) for each in (module, teacher)]
    return (answers[0] == answers[1]).float().mean().item()


def test_labels_alone_train_a_classifier(teacher):
    with torch.no_grad():
        assert accuracy(teacher) > 0.9


def test_distillation_recovers_the_teachers_answers(teacher):
    student = net(8, seed=1)
    assert agreement(student, teacher) < 0.3
    finetune(student, teacher, loader(), epochs=6, lr=1e-2)
    assert agreement(student, teacher) > 0.9


def test_a_pruned_network_recovers_and_goes_out_again(teacher):
    example, axes = IMAGES[:2], {"image": {0: "batch"}}
    model = load(teacher, (example,), dynamic_shapes=axes)
    optimize(model, "prune-channels{ratio=0.8}")
    student = to_torch(model)
    assert student.head.weight.shape == (10, 64)
    pruned = agreement(student, teacher)
    finetune(student, teacher, loader(), epochs=6, lr=1e-2)
    assert agreement(student, teacher) > pruned + 0.05
    with Session(load(student, (example,), dynamic_shapes=axes)) as session:
        (logits,) = session.run({"image": HELD_OUT[0].numpy()}).values()
    assert torch.allclose(torch.from_numpy(logits), student.eval()(HELD_OUT[0]), atol=1e-4)


def test_a_teacher_that_knows_nothing_teaches_nothing(teacher):
    """The negative control: it is the teacher that the student learns from."""
    student = net(8, seed=1)
    finetune(student, net(seed=5), loader(), epochs=6, lr=1e-2)
    assert agreement(student, teacher) < 0.5


@pytest.mark.parametrize("loss", ["mse", "kl+mse"])
def test_other_distances_recover_too(teacher, loss):
    student = net(8, seed=1)
    finetune(student, teacher, loader(), epochs=6, lr=1e-2, loss=loss)
    assert agreement(student, teacher) > 0.85


def test_a_loss_of_ones_own(teacher):
    def loss(student, taught, labels):
        assert labels.shape == student.shape[:1]
        return (student - taught).square().mean()

    student = net(8, seed=1)
    finetune(student, teacher, loader(labelled=True), labels=1, epochs=6, lr=1e-2, loss=loss)
    assert agreement(student, teacher) > 0.85


def test_labels_pull_where_the_teacher_is_wrong(teacher):
    """Labels that say 0 for everything win against the teacher if their weight is large."""
    data = [(IMAGES[:100], torch.zeros(100, dtype=torch.int64))]
    student = net(8, seed=1)
    finetune(student, teacher, data, labels=-1, label_weight=100.0, steps=40, lr=1e-2)
    with torch.no_grad():
        assert (student.eval()(IMAGES[:100]).argmax(1) == 0).float().mean() > 0.9


def test_a_regression():
    teacher, student = nn.Linear(4, 1), nn.Linear(4, 1)
    data = [torch.randn(32, 4, generator=torch.Generator().manual_seed(place)) for place in range(8)]
    result = finetune(student, teacher, data, loss="mse", epochs=60, lr=0.05, weight_decay=0)
    assert result.history[-1].loss < 1e-3 * result.history[0].loss
    assert torch.allclose(student.weight, teacher.weight, atol=0.05)


def test_regression_targets():
    student, x = nn.Linear(4, 1), torch.randn(64, 4)
    data = [(x, x.sum(1, keepdim=True))]
    finetune(student, None, data, labels=1, loss="mse", steps=200, lr=0.05, weight_decay=0)
    assert torch.allclose(student.weight, torch.ones(1, 4), atol=0.05)


class Tokens(nn.Module):
    """A language model: its head is tied to its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, scale=1.0):
        return self.head(self.embedding(ids)) * scale


def test_dict_batches_and_tied_parameters():
    student, teacher = Tokens(), Tokens()
    batch = {"ids": torch.arange(7)[None], "scale": torch.tensor(2.0)}
    finetune(student, teacher, [batch], steps=100, lr=0.05, temperature=1.0)
    assert student.head.weight is student.embedding.weight
    assert torch.equal(student(batch["ids"]).argmax(-1), teacher(batch["ids"]).argmax(-1))


def test_positions_labelled_as_ignored_do_not_count():
    student = Tokens()
    ids = torch.tensor([[0, 1, 2, 3]])
    for labels, changes in ((torch.tensor([[-100, -100, 4, -100]]), True), (torch.full((1, 4), -100), False)):
        before = weights(student)
        finetune(student, Tokens(), [{"ids": ids, "y": labels}], labels="y", steps=1, weight_decay=0, warmup=0)
        assert same(before, weights(student)) != changes


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Wrapped(nn.Module):
    def __init__(self, wrap, inner=None):
        super().__init__()
        self.inner, self.wrap = inner or nn.Linear(4, 3), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [
        Output,
        lambda y: {"logits": y, "hidden": y + 1},
        lambda y: (y,),
        lambda y: {"y": y},
        lambda y: type("Bare", (), {"logits": y})(),
    ],
)
def test_outputs_of_many_kinds(wrap):
    data = [torch.randn(16, 4)]
    student, teacher = Wrapped(wrap), nn.Linear(4, 3)
    result = finetune(student, teacher, data, epochs=100, lr=0.05)
    assert result.history[-1].loss < 0.05 * result.history[0].loss


def test_one_of_several_outputs_is_chosen():
    data, student, teacher = [torch.randn(16, 4)], Wrapped(lambda y: (y.sum(), y)), Wrapped(lambda y: (y.mean(), y))
    with pytest.raises(UsageError, match="several outputs"):
        finetune(student, teacher, data)
    with pytest.raises(UsageError, match="no tensor 2"):
        finetune(student, teacher, data, output=2)
    finetune(student, teacher, data, output=1)


def test_the_same_seed_gives_the_same_weights(teacher):
    runs = []
    for seed, disturbance in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(disturbance)
        student = net(8, seed=1, dropout=0.2)
        generator = torch.Generator().manual_seed(disturbance)
        finetune(student, teacher, loader(generator=generator), epochs=1, seed=seed)
        runs.append(weights(student))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_random_generators_are_left_as_they_were(teacher):
    own, student = torch.Generator().manual_seed(9), net(8)
    before = torch.get_rng_state(), np.random.get_state()[1], own.get_state()
    finetune(student, teacher, loader(generator=own), steps=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert torch.equal(before[2], own.get_state())


class Noisy(torch.utils.data.Dataset):
    """Draws from each of the global generators, as transforms do."""

    def __len__(self):
        return 500

    def __getitem__(self, index):
        return IMAGES[index] + 0.1 * torch.randn(1, 8, 8) + 0.1 * np.random.rand()


class Interrupted(Exception):
    pass


def interrupt_at(last):
    def progress(what, done, total):
        if done == last:
            raise Interrupted

    return progress


@pytest.mark.parametrize(
    ("options", "interruptions", "workers"),
    [
        ({"checkpoint_every": 3}, [2, 8], 0),
        ({"checkpoint_every": 5, "evaluate_every": 4}, [6, 11], 0),
        ({}, [4, 7], 0),
        ({"checkpoint_every": 3}, [8], 2),
        ({"checkpoint_every": 1, "precision": "bfloat16"}, [9], 0),
        ({"checkpoint_every": 4, "precision": "float16"}, [9], 0),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(teacher, tmp_path, options, interruptions, workers):
    """Bit by bit: dropout, noise in the data, the order of the data, moments, history and best weights."""

    def run(**more):
        student = net(8, seed=1, dropout=0.3)
        data = DataLoader(Noisy(), batch_size=100, shuffle=True, num_workers=workers)
        return student, finetune(student, teacher, data, epochs=3, evaluate=accuracy, **options, **more)

    student, result = run()
    path = tmp_path / "run.pt"
    for last in interruptions:
        with pytest.raises(Interrupted):
            run(checkpoint=path, progress=interrupt_at(last))
    resumed, resumed_result = run(checkpoint=path)
    assert same(weights(student), weights(resumed))
    assert result.history == resumed_result.history
    assert result.best_step == resumed_result.best_step
    again, _ = run(checkpoint=path, progress=interrupt_at(1))  # finished: no further step is made
    assert same(weights(student), weights(again))


def test_a_run_that_forgets_its_random_state_is_seen(teacher, tmp_path, monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr("bevel.backends.torch.finetuning.loop.set_random_state", lambda *state: None)
    with pytest.raises(AssertionError):
        test_interrupted_and_resumed_is_uninterrupted(teacher, tmp_path, {"checkpoint_every": 3}, [2, 8], 0)


def test_a_checkpoint_of_another_run_is_refused(teacher, tmp_path):
    path = tmp_path / "run.pt"
    finetune(net(8), teacher, loader(), steps=2, checkpoint=path)
    for changed in ({"steps": 3}, {"steps": 2, "lr": 2e-3}, {"steps": 2, "loss": lambda *parts: None}):
        with pytest.raises(UsageError, match="other settings"):
            finetune(net(8), teacher, loader(), checkpoint=path, **changed)
    with pytest.raises(UsageError, match="student was"):
        finetune(net(9), teacher, loader(), steps=2, checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="is no checkpoint"):
        finetune(net(8), teacher, loader(), steps=2, checkpoint=path)
    with pytest.raises(UsageError, match="cannot be written"):
        finetune(net(8), teacher, loader(), steps=2, checkpoint=tmp_path / "nowhere" / "run.pt")


def test_a_checkpoint_holds_no_code(teacher, tmp_path):
    path = tmp_path / "run.pt"
    finetune(net(8), teacher, loader(), steps=2, checkpoint=path, evaluate=accuracy)
    assert torch.load(path, weights_only=True)["own"]["step"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_early_stop_gives_the_best_weights_back(teacher):
    scores = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    seen = []

    def evaluate(module):
        seen.append(weights(module))
        return next(scores)

    student = net(8, seed=1)
    result = finetune(student, teacher, loader(), epochs=9, evaluate=evaluate, evaluate_every=2, patience=2)
    assert [point.score for point in result.history] == [1.0, 3.0, 2.0, 2.5]
    assert (result.steps, result.best_step, result.score, result.stopped_early) == (6, 2, 3.0, True)
    assert same(weights(student), seen[1])
    assert not same(seen[1], seen[3])


def test_smaller_is_better_where_it_is_said(teacher):
    scores = iter([3.0, 1.0, float("nan"), 2.0])
    result = finetune(
        net(8),
        teacher,
        loader(),
        steps=3,
        evaluate=lambda module: next(scores),
        evaluate_every=1,
        greater_is_better=False,
    )
    assert (result.best_step, result.score, result.stopped_early) == (1, 1.0, False)


def test_a_student_never_ends_worse_than_it_began(teacher):
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        before = accuracy(student)
    result = finetune(student, net(seed=5), loader(), epochs=1, lr=0.1, evaluate=accuracy)
    assert result.history[-1].score < before
    with torch.no_grad():
        assert accuracy(student.eval()) == before


def test_evaluation_does_not_change_the_training(teacher):
    def evaluate(module):
        torch.rand(5)
        return 0.0 if (evaluations.append(0) or True) and len(evaluations) < 4 else 1.0

    evaluations = []
    plain, evaluated = (net(8, seed=1, dropout=0.3) for _ in range(2))
    finetune(plain, teacher, loader(), steps=3)
    finetune(evaluated, teacher, loader(), steps=3, evaluate=evaluate, evaluate_every=1)
    assert same(weights(plain), weights(evaluated))


def test_what_is_frozen_stays_and_the_teacher_too(teacher):
    student = net(8, seed=1)
    student.conv.requires_grad_(False)
    student.norm.eval()
    before, taught = weights(student), weights(teacher)
    teacher.train()
    teacher.norm.eval()
    finetune(student, teacher, loader(), steps=3, weight_decay=0.5)
    after = weights(student)
    assert torch.equal(before["conv.weight"], after["conv.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert same(taught, weights(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert (student.training, student.norm.training, teacher.training, teacher.norm.training) == (True, False) * 2
    teacher.eval()


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False)])
def test_batchnorm_statistics_move_in_train_mode_only(teacher, mode, moves):
    student = net(8, seed=1)
    finetune(student, teacher, loader(), steps=3, mode=mode)
    assert (student.norm.running_mean.abs().sum().item() > 0) == moves
    assert student.training


def test_only_matrices_decay(teacher):
    """With nothing to learn, weights shrink by the decay alone: vectors not at all."""
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.norm.weight.fill_(1.0)
    before = weights(student)
    zero = lambda student, taught, labels: 0.0 * student.sum()  # noqa: E731
    finetune(student, teacher, loader(), steps=4, lr=0.1, weight_decay=0.5, loss=zero, mode="eval", warmup=0)
    after = weights(student)
    assert torch.equal(before["norm.weight"], after["norm.weight"])
    assert torch.equal(before["head.bias"], after["head.bias"])
    rates = [0.1 * 0.5 * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    shrunk = np.prod([1 - 0.5 * rate for rate in rates])
    assert torch.allclose(after["head.weight"], before["head.weight"] * shrunk)


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_loss_that_is_no_number_stops_the_run(teacher, evaluated):
    """The student is left at its last good weights, statistics of normalisations included."""
    broken = [IMAGES[:100], IMAGES[100:200], torch.full((100, 1, 8, 8), torch.nan)]
    student, seen = net(8, seed=1), []
    more = {"evaluate": lambda module: float(len(seen) == 1), "evaluate_every": 1} if evaluated else {}
    more["progress"] = lambda what, done, total: seen.append(weights(student))
    with pytest.raises(TrainingDiverged, match=r"step 3 of 6.*nan") as caught:
        finetune(student, teacher, broken, epochs=2, warmup=0.0, **more)
    assert "lower lr" in caught.value.remedy
    assert len(seen) == 2
    assert same(weights(student), seen[0 if evaluated else 1])


def test_a_gradient_that_is_no_number_stops_the_run():
    student = nn.Linear(2, 2)
    before = weights(student)
    root = lambda student, taught, labels: (student - student.detach()).abs().sqrt().sum()  # noqa: E731
    with pytest.raises(TrainingDiverged, match="a gradient is not finite"):
        finetune(student, None, [torch.ones(1, 2)], loss=root)
    assert same(before, weights(student))


def test_progress_counts_steps(teacher):
    told = []
    finetune(net(8), teacher, loader(rows=300), epochs=2, progress=lambda *news: told.append(news))
    assert told == [("finetune", done, 6) for done in range(1, 7)]


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(IMAGES[: self.rows])


def test_data_without_a_length_runs_for_steps(teacher):
    data = DataLoader(Stream(300), batch_size=100)
    assert finetune(net(8), teacher, data, steps=7).steps == 7
    with pytest.raises(UsageError, match="length"):
        finetune(net(8), teacher, data, epochs=1)
    with pytest.raises(UsageError, match="no batch"):
        finetune(net(8), teacher, DataLoader(Stream(0), batch_size=100), steps=7)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"steps": -1}, "steps=-1"),
        ({"epochs": 1, "steps": 1}, "only one"),
        ({"lr": 0.0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"temperature": 0}, "temperature=0"),
        ({"warmup": 1.0}, "warmup=1"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"seed": -1}, "seed=-1"),
        ({"patience": 0, "evaluate": accuracy}, "patience=0"),
        ({"patience": 2}, "no score"),
        ({"loss": "kld"}, "did you mean 'kl'"),
        ({"precision": "half"}, "unknown precision"),
        ({"mode": "test"}, "unknown mode"),
        ({"labels": "label"}, "no 'label'"),
        ({"labels": -1}, "does not fit"),
        ({"class_dim": 5}, "no row of logits"),
        ({"loss": lambda student, taught, labels: 1.0}, "no single number"),
    ],
)
def test_nonsense_is_refused_before_any_step(teacher, options, match):
    student = net(8, seed=1)
    before = weights(student)
    with pytest.raises(UsageError, match=match):
        finetune(student, teacher, loader(), **options)
    assert same(before, weights(student))


def test_data_that_makes_no_sense_is_refused(teacher):
    for data, match in (
        ([], "no batch"),
        (iter([IMAGES]), "only once"),
        ((part for part in [IMAGES]), "only once"),
        (IMAGES, "no collection of batches"),
        (3, "no collection of batches"),
        (["image"], "of type str"),
        (loader(labelled=True), "labels=-1"),
    ):
        with pytest.raises(UsageError, match=match):
            finetune(net(8), teacher, data)


def test_modules_that_do_not_go_together_are_refused(teacher):
    wide, labelled = nn.Sequential(nn.Flatten(), nn.Linear(64, 11)), [(IMAGES[:50], LABELS[:49])]
    probable = Wrapped(lambda y: y.softmax(-1), net())
    for student, taught, data, match in (
        (wide, teacher, loader(), r"returns \[100, 11\]"),
        (net(), probable, loader(), "no row of logits"),
        (teacher, teacher, loader(), "shares its memory"),
        (net(), None, loader(), "nothing to learn from"),
        (net().requires_grad_(False), teacher, loader(), "requires a gradient"),
        (net().half(), teacher, loader(), "too coarse"),
    ):
        with pytest.raises(UsageError, match=match):
            finetune(student, taught, data)
    with pytest.raises(UsageError, match=r"\[49\]"):
        finetune(net(), teacher, labelled, labels=-1)
