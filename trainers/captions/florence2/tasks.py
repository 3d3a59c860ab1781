"""Florence-2's tasks: their names, their tokens, and the sentences that some tokens mean. Imports
nothing.
"""

# ComfyUI users know these names. PromptGen's tokens exist only in MiaoshouAI's fine-tuned models.
TASKS = {
    "caption": "<CAPTION>",
    "detailed_caption": "<DETAILED_CAPTION>",
    "more_detailed_caption": "<MORE_DETAILED_CAPTION>",
    "prompt_gen_tags": "<GENERATE_TAGS>",
    "prompt_gen_mixed_caption": "<MIXED_CAPTION>",
    "prompt_gen_mixed_caption_plus": "<MIXED_CAPTION_PLUS>",
    "prompt_gen_analyze": "<ANALYZE>",
    "ocr": "<OCR>",
}

# The model was trained on these sentences; other tokens are sent unchanged.
_SENTENCES = {
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OCR>": "What is the text in the image?",
}
_GIVE_REGIONS = (
    "<OD>",
    "<DENSE_REGION_CAPTION>",
    "<REGION_PROPOSAL>",
    "<OCR_WITH_REGION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<REGION_TO_SEGMENTATION>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<REGION_TO_CATEGORY>",
    "<REGION_TO_DESCRIPTION>",
    "<REGION_TO_OCR>",
)


def expand_prompt(prompt: str) -> str:
    """Return the text to send to the model for a task's token or the user's prompt.

    Raises:
        ValueError: the prompt is empty, has text next to one of Florence-2's task tokens, or asks
            for regions instead of a caption.
    """
    prompt = prompt.strip()
    if not prompt:
        raise ValueError("the prompt is empty. Choose a task, or write a prompt such as <DETAILED_CAPTION>")
    regions = next((token for token in _GIVE_REGIONS if token in prompt), None)
    if regions:
        raise ValueError(f"{regions} gives regions of the image, not a caption. Use one of {', '.join(TASKS.values())}")
    token = next((token for token in _SENTENCES if token in prompt and token != prompt), None)
    if token:
        raise ValueError(
            f"the prompt {prompt!r} has text next to {token}, which must be used alone. Remove one of them"
        )
    return _SENTENCES.get(prompt, prompt)
