"""Types of fields that several parts of a status share."""

from typing import Annotated

from pydantic import Field, WithJsonSchema

Count = Annotated[int, Field(ge=0)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
# In the CRD any word is let through: a newer operator may know more of them than the CRD that is
# installed.
OpenName = WithJsonSchema({"type": "string", "maxLength": 253})
Short = Annotated[str, Field(max_length=253)]
