-- How many bytes are kept of what a GenAI event was told and answered: NULL is all of it, 0 none.
ALTER TABLE projects ADD COLUMN genai_content_bytes integer CHECK (genai_content_bytes >= 0);
