"""Labels that a model copies into a text: "Positive: a cat", "Réponse : un chat"."""

from __future__ import annotations

import re

# Of a query, an answer and the like, in the languages that models write most.
_LABELS = """
query|question|instruction|(hard )?negatives?( \\d+)?|positive|answer|label|misleading label|document|caption|
revised \\w+|draft|
réponse|question|légende|instruction|requête|négatif|positif|
respuesta|pregunta|leyenda|instrucción|consulta|negativo|positivo|
risposta|domanda|didascalia|istruzione|
resposta|pergunta|legenda|instrução|consulta|
antwort|frage|bildunterschrift|anweisung|anfrage|
antwoord|vraag|bijschrift|svar|spørsmål|spørgsmål|fråga|vastaus|kysymys|
odpowiedź|pytanie|podpis|odpověď|otázka|odpoveď|odgovor|pitanje|vprašanje|válasz|kérdés|răspuns|întrebare|
ответ|вопрос|подпись|запрос|відповідь|питання|запитання|адказ|пытанне|отговор|въпрос|
απάντηση|ερώτηση|cevap|yanıt|soru|cavab|sual|
jawaban|pertanyaan|jawapan|soalan|sagot|tanong|câu hỏi|trả lời|câu trả lời|
答案|回答|问题|問題|查询|標題|标题|質問|答え|キャプション|답변|답|질문|
الإجابة|إجابة|السؤال|سؤال|جواب|پاسخ|پرسش|תשובה|שאלה|उत्तर|प्रश्न|उत्तर|প্রশ্ন|উত্তর|கேள்வி|பதில்|คำตอบ|คำถาม
"""
_NAMES = "|".join(dict.fromkeys(_LABELS.replace("\n", "").strip("|").split("|")))
_LABEL = re.compile(rf"^\W{{0,3}}({_NAMES})[*_]*\s*[:：]\s*\S", re.IGNORECASE)


def leaked_label(text: str) -> str | None:
    """The label, such as "Positive", that a text begins with; None if it does not.

    >>> leaked_label("Positive: a cat"), leaked_label("a positive: cat"), leaked_label("Réponse : un chat")
    ('Positive', None, 'Réponse')
    """
    match = _LABEL.match(text)
    return match[1] if match else None
