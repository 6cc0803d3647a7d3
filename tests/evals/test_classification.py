"""The classification evaluator against scikit-learn and numbers worked out by hand; `collect` on padded batches."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from jtl.errors import UserError
from jtl.evals import Seen, classification, collect


def evaluate(logits, label):
    outputs = {'logits': np.asarray(logits, np.float32), 'label': np.asarray(label)}
    classes = tuple(map(str, range(outputs['logits'].shape[1])))
    return dict(classification.run(Seen(outputs, classes, None, None)))


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize('size', [1, 4, 7, 8])
def test_collect_on_a_padded_last_batch_is_exact(size):
    x = np.arange(size * 3, dtype=np.float32).reshape(size, 3)

    def batches():
        for i in range(0, size, 4):
            rows = x[i : i + 4]
            pad = 4 - len(rows)
            padded = np.pad(rows, ((0, pad), (0, 0)), constant_values=99)
            index = np.pad(np.arange(i, i + len(rows)), (0, pad))
            yield {'features': padded, 'label': index % 3, 'index': index, 'mask': np.arange(4) < len(rows)}

    predict = jax.jit(lambda batch: {'logits': (2 * batch['features']).astype(jnp.bfloat16), 'features': 0})
    seen = collect(predict, batches())
    assert set(seen) == {'logits', 'label', 'index'}
    np.testing.assert_array_equal(seen['logits'], 2 * x)
    np.testing.assert_array_equal(seen['index'], np.arange(size))
    np.testing.assert_array_equal(seen['label'], np.arange(size) % 3)
    assert seen['logits'].dtype == np.float32


def test_collect_keeps_trees_and_does_without_mask_and_label():
    predict = lambda batch: {'logits': {'a': batch['image'], 'b': -batch['image']}}
    seen = collect(predict, [{'image': np.ones((2, 3))}, {'image': np.zeros((1, 3))}])
    assert seen['logits']['a'].shape == seen['logits']['b'].shape == (3, 3)
    assert 'label' not in seen


def test_collect_without_batches_says_so():
    with pytest.raises(UserError, match='no batches'):
        collect(lambda batch: batch, [])


def test_single_label_by_hand():
    # Softmax of log p is p. Predictions: 0, 1, 1 for labels 0, 1, 0.
    p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    m = evaluate(np.log(p), [0, 1, 0])
    assert m['loss'] == pytest.approx(-(np.log(0.8) + np.log(0.6) + np.log(0.3)) / 3, abs=1e-6)
    assert m['accuracy'] == pytest.approx(2 / 3)
    np.testing.assert_array_equal(m['confusion'], [[1, 1], [0, 1]])
    np.testing.assert_allclose(m['precision'], [1, 0.5])
    np.testing.assert_allclose(m['recall'], [0.5, 1])
    # Positives (class 1) score 0.6, negatives 0.2 and 0.7: one of two pairs is in order.
    assert m['auroc'] == pytest.approx(0.5)
    # Confidences 0.8 (right), 0.6 (right), 0.7 (wrong) lie in three bins: (0.2 + 0.4 + 0.7) / 3.
    assert m['ece'] == pytest.approx(1.3 / 3, abs=1e-6)
    assert 'top5' not in m


def test_single_label_against_sklearn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 7, 300)  # classes 7, 8, 9 do not occur, but are predicted
    logits = rng.normal(size=(300, 10)).astype(np.float32)
    logits[np.arange(300), label] += 1
    m, predicted = evaluate(logits, label), logits.argmax(1)
    here = range(7)
    p, r, f, _ = sk.precision_recall_fscore_support(label, predicted, labels=here, average='macro', zero_division=0)
    np.testing.assert_allclose([m['precision_macro'], m['recall_macro'], m['f1_macro']], [p, r, f], rtol=1e-12)
    each = sk.precision_recall_fscore_support(label, predicted, labels=range(10), zero_division=0)
    for name, reference in zip(('precision', 'recall', 'f1', 'support'), each):
        np.testing.assert_allclose(m[name], reference, rtol=1e-12)
    np.testing.assert_array_equal(m['confusion'], sk.confusion_matrix(label, predicted, labels=range(10)))
    assert m['loss'] == pytest.approx(sk.log_loss(label, softmax(logits), labels=range(10)), rel=1e-6)
    assert m['accuracy'] == pytest.approx(sk.accuracy_score(label, predicted))
    assert m['top5'] == pytest.approx(sk.top_k_accuracy_score(label, logits, k=5, labels=range(10)))


def test_top5_of_a_constant_model_is_not_perfect():
    assert evaluate(np.zeros((10, 10)), np.arange(10))['top5'] == 0.5  # ties go to the first classes, as in argmax


@pytest.mark.parametrize('decimals', [1, 6])  # 1: many ties
def test_auroc_and_average_precision_against_sklearn(decimals):
    rng = np.random.default_rng(1)
    positive = rng.random(200) < 0.3
    score = np.round(rng.normal(size=200) + positive, decimals)
    assert classification.auroc(score, positive) == pytest.approx(sk.roc_auc_score(positive, score), abs=1e-12)
    reference = sk.average_precision_score(positive, score)
    assert classification.average_precision(score, positive) == pytest.approx(reference, abs=1e-12)


def test_multi_label_against_sklearn():
    rng = np.random.default_rng(2)
    label = (rng.random((200, 5)) < 0.3).astype(np.float32)
    label[:, 4] = 0  # never occurs: in no average
    logits = (rng.normal(size=(200, 5)) + 2 * label - 1).astype(np.float32)
    m, predicted, p = evaluate(logits, label), logits > 0, 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert m['loss'] == pytest.approx(-np.where(label > 0, np.log(p), np.log1p(-p)).mean(), rel=1e-6)
    assert m['accuracy'] == pytest.approx((predicted == label).mean())
    assert m['exact_match'] == pytest.approx(sk.accuracy_score(label, predicted))
    assert m['f1_macro'] == pytest.approx(sk.f1_score(label[:, :4], predicted[:, :4], average='macro'))
    assert m['auroc'] == pytest.approx(sk.roc_auc_score(label[:, :4], logits[:, :4]))
    assert m['map'] == pytest.approx(sk.average_precision_score(label[:, :4], logits[:, :4]))
    assert m['precision'].shape == m['support'].shape == (5,)


def test_calibration_error_of_confident_and_of_honest_predictions():
    assert classification.calibration_error(np.ones(4), np.array([1, 0, 0, 1])) == 0.5
    assert classification.calibration_error(np.full(4, 0.75), np.array([1, 1, 1, 0])) == 0
    # 1/15 belongs to the first bin, ((0, 1/15]), like 0.01: |(1 - 0.01) + (0 - 1/15)| / 2.
    assert classification.calibration_error(np.array([0.01, 1 / 15]), np.array([1, 0])) == pytest.approx(
        (0.99 - 1 / 15) / 2
    )


def test_logits_that_are_not_finite_give_nan_loss_and_wrong_predictions():
    m = evaluate([[np.nan, 0, 0], [np.inf, 0, 0], [5, 0, -np.inf]], [0, 0, 0])
    assert np.isnan(m['loss']) and np.isnan(m['ece'])
    assert m['accuracy'] == pytest.approx(1 / 3)
    assert m['confusion'].sum() == 1 and m['support'].sum() == 3
    many = evaluate(np.full((4, 3), np.nan), np.array([[1, 0, 0]] * 2 + [[0, 1, 0]] * 2, np.float32))
    assert np.isnan(many['loss']) and many['accuracy'] == 0


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(UserError, match='from 0 to 3, but the model has 3 classes'):
        evaluate(np.zeros((2, 3)), [0, 3])


def test_run_is_fast_enough_to_be_called_hundreds_of_times():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(800, 10)), rng.integers(0, 10, 800)
    evaluate(logits, label)
    best = min(_seconds(lambda: evaluate(logits, label)) for _ in range(20))
    assert best < 0.005


def _seconds(fn):
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start
