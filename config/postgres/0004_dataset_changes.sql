-- Gateways hold all datasets in memory and read them again when this number is another. A row and not a
-- sequence, for the reasons of key_changes.
CREATE TABLE dataset_changes (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number   bigint  NOT NULL
);

INSERT INTO dataset_changes (number) VALUES (1);

CREATE FUNCTION count_dataset_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE dataset_changes SET number = number + 1;
    RETURN NULL;
END;
$$;

CREATE TRIGGER dataset_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON datasets
    FOR EACH STATEMENT EXECUTE FUNCTION count_dataset_change();

-- The declared fields in their order, [["country", "string"], ...]: an object would lose it.
ALTER TABLE datasets ADD CHECK (jsonb_typeof(schema) = 'array');
