from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rag_serving.metrics import Metrics, labelled


def figures(requests: int, seconds: float) -> str:
    metrics = Metrics()
    metrics.requests.labels("/search", "200").inc(requests)
    metrics.batch_seconds.observe(seconds)
    metrics.gauge("rag_documents", "Passages in the corpus", lambda: 8)
    return generate_latest(metrics.registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_sample_of_every_replica_is_there_under_its_label():
    texts = {"one": figures(3, 0.002), "two": figures(5, 40.0)}
    merged = labelled(texts).decode()
    expected = {
        (name, labels | {("replica", replica)}): value
        for replica, text in texts.items()
        for (name, labels), value in samples(text).items()
    }
    assert samples(merged) == expected
    assert 'rag_requests_total{replica="one",route="/search",status="200"} 3.0' in merged
    assert 'rag_batch_seconds_bucket{le="30.0",replica="two"} 0.0' in merged
    assert merged.count("# TYPE rag_requests_total counter") == 1
