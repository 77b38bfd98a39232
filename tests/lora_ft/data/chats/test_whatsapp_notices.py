"""Composite notices of WhatsApp are distinguished from texts of people, in many languages and versions."""

from __future__ import annotations

import time

import pytest

from lora_ft.data.chats.whatsapp_words import written

NOTICES = """
Este mensaje fue eliminado por un administrador|Mensagem apagada por um admin
Diese Nachricht wurde von Admin Jörg gelöscht.|Ce message a été supprimé par l’admin Luc
Verpasster Gruppenanruf|Sprachanruf in Abwesenheit|Videoanruf in Abwesenheit|Gemiste groepsoproep
Пропущений голосовий дзвінок|부재중 영상 통화|未接听的语音通话|Chamada de vídeo perdida|Nem fogadott videohívás
Warte auf diese Nachricht. Dies kann etwas dauern.|En attente de ce message. Cela peut prendre un moment.
Ожидание сообщения. Это может занять некоторое время.|Bu mesaj bekleniyor. Bu biraz zaman alabilir.
Трансляция геоданных|lokasi langsung dibagikan|已分享实时位置|ライブ位置情報を共有しました
vị trí: https://maps.google.com/?q=21,105.8|موقعیت مکانی: https://maps.google.com/?q=35.7,51.4
Voice call, No answer|Video call, 12 min|Voice call, 1 hr 5 min
"""
POLLS = (
    "POLING:\nKapan?\nOPSI: Senin (1 suara)\n",
    "KHẢO SÁT:\nKhi nào?\nLỰA CHỌN: T2 (1)",
    "استطلاع رأي:\nمتى؟\nالخيار: الاثنين (صوت واحد)",
    "WORD OF NO LIST:\nWhen?\nCHOICE: Monday (2 votes)\nCHOICE: Tuesday (0 votes)",
)
WRITTEN = (
    "missed call from mum",
    "Anruf?",
    "perdida",
    "nem hívás",
    "une appel manqué de Luc",
    "Esperando este mensaje desde ayer",
    "este mensaje fue eliminado por error, perdón",
    "lista:\nsúper\nleche: 2 (entera)\npan: 1 (integral)",
    "nos vemos aquí: https://maps.google.com/?q=21,105.8",
    "Videollamada, 5 personas confirmaron, ¿vienes?",
)


@pytest.mark.parametrize("ios", [False, True])
@pytest.mark.parametrize("text", [*NOTICES.strip().replace("\n", "|").split("|"), *POLLS])
def test_notice_is_recognized(text: str, ios: bool) -> None:
    assert written(text, ios=ios) == ""


@pytest.mark.parametrize("text", WRITTEN)
def test_a_text_that_is_like_a_notice_stays(text: str) -> None:
    assert written(text, ios=False) == text


@pytest.mark.parametrize("part", ["a: (", "poll: ", "a:\n", "perdida ", "(", "a: (x)\n"])
def test_a_long_text_is_judged_at_once(part: str) -> None:
    start = time.monotonic()
    written(part * 60_000, ios=False)
    assert time.monotonic() - start < 5
