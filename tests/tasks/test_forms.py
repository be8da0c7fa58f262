"""What Prefect's server says of a parameter that it refuses."""

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows.train_burgers import train_burgers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"latent_dim": "abc"}, "'latent_dim'.* 'abc' is not of type 'integer', 'null'"),
        ({"latent_dim": 0}, "'latent_dim'.* 0 is less than the minimum of 1"),
        ({"seed": "x"}, "'seed'.* 'x' is not of type 'integer', 'null'"),
        ({"overrides": ["a"]}, "'overrides'.* is not of type 'object', 'null'"),
        ({"features": {"warm_up": 3}}, r"'features\.warm_up'.* 3 is not of type 'boolean'"),
        ({"resume_from": 3}, "'resume_from'.* 3 is not of type 'string', 'null'"),
    ],
)
def test_the_server_names_the_parameter_what_it_found_and_what_is_allowed(given, expected):
    schema = train_burgers.parameters.model_dump()
    with pytest.raises(Exception, match=expected):
        validate(given, schema, raise_on_error=True)
    fields = dict.fromkeys(schema["properties"].keys() - {"config", "overwrite_cache"})
    assert validate(fields, schema) == []  # all of them may be null
