"""Detection of composite notices of WhatsApp: calls, polls, places, and messages that are deleted or still to come.

A phone writes "Verpasster Gruppen-Sprachanruf" or "Sprachanruf in Abwesenheit" depending on WhatsApp's version. So
calls outside English are detected by their words. A text is a notice if it has a word for *missed*, a word for *call*,
and otherwise only words of such notices.
"""

from __future__ import annotations

import re
import unicodedata

_MISSED = """
verpasster verpasste verpasstes abwesenheit stummgeschalteter perdida perdidas silenciada manqué manqués manquée
persa perse persi gemiste gemist terjawab takterjawab terlepas dijawab cevapsız пропущенный пропущенные
отклонённый пропущений пропущені пропуснато пропуснат пропуштен пропуштени nieodebrane nieodebrana odrzucone
zmeškaný zmeškané missat missade ubesvart tapt ubesvaret mistet vastaamaton fogadott pierdut ratat nepreluat
propušteni propušten zgrešeni zgrešen praleistas neatbildēts vastamata αναπάντητη perduda מענה שנענתה נענתה
فائتة رفته بی‌پاسخ پاسخ مسڈ मिस्ड छूटी মিসড nhỡ nasagot imekosa
"""
_CALL = """
anruf sprachanruf videoanruf gruppenanruf gruppensprachanruf gruppenvideoanruf sprachanrufe videoanrufe llamada
videollamada chamada videochamada ligação appel appels chiamata videochiamata oproep spraakoproep videooproep
groepsoproep groepsspraakoproep groepsvideooproep gesprek panggilan arama araması aramalar звонок аудиозвонок
видеозвонок вызов видеовызов аудиовызов дзвінок аудіодзвінок відеодзвінок виклик відеовиклик обаждане повик
połączenie rozmowa wideorozmowa hovor videohovor samtal röstsamtal videosamtal gruppsamtal anrop taleanrop
videoanrop gruppeanrop opkald taleopkald videoopkald gruppeopkald puhelu äänipuhelu videopuhelu ryhmäpuhelu
hanghívás videohívás hívás apel poziv videopoziv klic videoklic skambutis zvans kõne häälkõne videokõne κλήση
βιντεοκλήση trucada videotrucada שיחה שיחת مكالمة تماس کال कॉल কল cuộc gọi tawag simu
"""
_BESIDE = """
a an the in de da do du di of group voice video audio gruppen sprach grupal grupo voz vídeo vocal vocale groupe
gruppo groep suara grup kumpulan tidak sesli görüntülü групповой голосовой груповий голосовий видео аудио відео
гласово głosowe wideo grupowe hlasový skupinový tale stem gruppe ryhmä csoport glasovni grupni φωνητική ομαδική
קולית וידאו קבוצתית לא ללא صوتية فيديو جماعية لم يرد صوتی تصویری گروهی از دست वॉइस वीडियो ग्रुप हुई ভয়েস ভিডিও
thoại nhóm na tak nem hindi عليها
"""
_UNSPACED = re.compile(
    "(?:(?:未接(?:听|聽)?(?:的|來電|来电)?|錯過的?)(?:语音|語音|视频|視訊|视讯|群组|群組|通话|通話|来电|來電|的)*"
    "|(?:音声|ビデオ|グループ|通話|の|（|）)*不在着信(?:音声|ビデオ|グループ|通話|の|（|）)*"
    "|부재중(?:그룹|음성|영상|통화|전화|보이스톡|페이스톡)+|(?:สาย|การ|โทร|ด้วย|เสียง|วิดีโอ|กลุ่ม)+ที่ไม่ได้รับ)"
)
_DURATION = re.compile(
    r"(?:(?:missed )?(?:group )?(?:voice|video) call|(?:sprach|video)anruf|videollamada|llamada(?: de voz)?|"
    r"(?:chamada|ligação) de (?:voz|vídeo)|appel (?:vocal|vidéo)|chiamata vocale|videochiamata|"
    r"(?:spraak|video-?)oproep|аудиозвонок|видеозвонок)[,.]? "
    r"(?:no answer|not answered|nicht angenommen|keine antwort|sin respuesta|sem resposta|"
    r"sans réponse|nessuna risposta|geen antwoord|без ответа|нет ответа|\d{1,3}\W{0,2}[^\W\d]{1,8}\.?"
    r"(?: \d{1,3}\W{0,2}[^\W\d]{1,8}\.?)?)"
)
# "Waiting for this message" precedes a second sentence that differs between versions.
_WAITING = """
waiting for this message|warten auf diese nachricht|warte auf diese nachricht|esperando este mensaje
esperando el mensaje|aguardando mensagem|aguardando esta mensagem|a aguardar esta mensagem
en attente de ce message|en attente du message|in attesa del messaggio|in attesa di questo messaggio
wachten op dit bericht|bu mesaj bekleniyor|mesaj bekleniyor|ожидание сообщения|ожидание этого сообщения
очікування повідомлення|очікування цього повідомлення|oczekiwanie na wiadomość|oczekiwanie na tę wiadomość
menunggu pesan ini|menunggu pesan|menunggu mesej ini|čeká se na zprávu|čekání na tuto zprávu
väntar på det här meddelandet|venter på denne meldingen|afventer denne besked|odotetaan tätä viestiä
várakozás az üzenetre|se așteaptă acest mesaj|αναμονή για αυτό το μήνυμα|ממתין להודעה זו|בהמתנה להודעה זו
في انتظار هذه الرسالة|بانتظار هذه الرسالة|در انتظار این پیام|इस मैसेज का इंतज़ार है
इस मैसेज का इंतज़ार किया जा रहा है|正在等待此消息|正在等待此訊息|このメッセージを待っています
이 메시지를 기다리는 중|메시지를 기다리는 중|đang chờ tin nhắn này|กำลังรอข้อความนี้
"""
_ADMIN = (
    r"admin\w*|administrador\w*|administrat\w+|amministrat\w+|beheerder|yönetici\w*|админ\w*|адмін\w*|pentadbir|"
    r"správce\w*|rendszergazda|διαχειριστ\w+|מנהל\w*|المشرف|مشرف|مدیر|एडमिन|管理员|管理員|管理者|관리자|"
    r"quản trị viên|ผู้ดูแล"
)
_DELETED_BY_ADMIN = re.compile(
    r"(?:this message was deleted by {0}|diese nachricht wurde von(?: einem| einer)? {0} gelöscht|"
    r"(?:este mensaje fue eliminado|se eliminó este mensaje) por (?:el |un |una |la )?{0}|"
    r"(?:un |una )?{0} (?:eliminó|ha eliminado) este mensaje|"
    r"(?:(?:essa|esta) )?mensagem (?:foi )?(?:apagada|eliminada) (?:por|pelo|pela)(?: um| uma)? {0}|"
    r"ce message a été supprimé par (?:un |une |l')?{0}|"
    r"(?:questo )?messaggio (?:è stato )?eliminato (?:da un |dall'|da ){0}|"
    r"dit bericht is(?: verwijderd)? door (?:een |de )?{0}(?: verwijderd)?|"
    r"bu mesaj(?: bir)? {0}(?: tarafından)? silindi|"
    r"(?:данное |это )?сообщение (?:было )?удалено {0}|(?:це )?повідомлення (?:було )?видалено {0}|"
    r"ta wiadomość została usunięta przez {0}|pesan ini (?:telah )?dihapus oleh {0}|"
    r"mesej ini (?:telah )?dipadam(?:kan)? oleh {0})".replace("{0}", rf"(?:{_ADMIN})(?: [^\n]{{1,60}}?)?")
)
_LIVE = """
live location shared|live-standort geteilt|live-standort wird geteilt|ubicación en tiempo real compartida
se compartió la ubicación en tiempo real|localização em tempo real compartilhada
localização em tempo real partilhada|localização atual compartilhada|localisation en direct partagée
position en direct partagée|posizione in tempo reale condivisa|posizione attuale condivisa|live locatie gedeeld
live-locatie gedeeld|lokasi terkini dibagikan|lokasi langsung dibagikan|lokasi live dibagikan
lokasi langsung dikongsi|lokasi semasa dikongsi|canlı konum paylaşıldı|трансляция геоданных|передача геоданных
геоданные транслируются|поширення геоданих|трансляція місцезнаходження|udostępniono lokalizację na żywo
lokalizacja na żywo udostępniona|lokalizacja na żywo|تمت مشاركة الموقع المباشر|تم مشاركة الموقع المباشر
موقع مباشر|موقعیت مکانی زنده به اشتراک گذاشته شد|लाइव लोकेशन शेयर की गई|लाइव लोकेशन शेयर किया गया|已分享实时位置
实时位置已共享|已共享实时位置|已分享即時位置|即時位置已分享|ライブ位置情報を共有しました
ライブ位置情報が共有されました|位置情報をライブ共有しました|실시간 위치 공유|실시간 위치를 공유했습니다
đã chia sẻ vị trí trực tiếp|vị trí trực tiếp được chia sẻ|แชร์ตำแหน่งที่ตั้งปัจจุบันแล้ว|מיקום בזמן אמת שותף
"""
_PLACE = re.compile(
    r"(?:(?:live )?[^:\s]{1,30}|(?:موقعیت|vị trí|live|localização|ubicación|localisation|posizione|lokasi|standort)"
    r"(?: [^:\n]{1,30})?) ?: ?https://maps\.google\.com/\?q=-?[\d.]{1,20},-?[\d.]{1,20}"
)
_POLL = re.compile(
    r"(?:poll|umfrage|encuesta|enquete|sondagem|sondage|sondaggio|peiling|polling|poling|jajak pendapat|anket|опрос|"
    r"опитування|анкета|ankieta|sonda|anketa|omröstning|afstemning|avstemning|kysely|szavazás|sondaj|δημοσκόπηση|"
    r"ψηφοφορία|סקר|استطلاع|استطلاع رأي|استطلاع الرأي|نظرسنجی|पोल|アンケート|투표|투표하기|投票|bình chọn|khảo sát|"
    r"cuộc thăm dò(?: ý kiến)?|thăm dò ý kiến|โพล(?:ล์)?|แบบสำรวจ|undian|tinjauan|enquesta|küsitlus|apklausa|aptauja)"
    r" ?[:：]\n.*\n",
    re.DOTALL,
)
_OPTION = re.compile(r"([^\W\d_][\w ]{1,30}?) ?[:：] ?[^\n]{1,200}[(（][^()（）\n]*[)）]")
_TITLE = re.compile(r"[^\W\d_][\w ]{1,30}? ?[:：]")
_FEWEST_OPTIONS = 2


def _listed(text: str, separator: str) -> frozenset[str]:
    folded = unicodedata.normalize("NFC", text.strip().casefold())
    return frozenset(folded.replace("\n", separator).split(separator))


_MISSED_WORDS, _CALL_WORDS, _BESIDE_WORDS = (_listed(words, " ") for words in (_MISSED, _CALL, _BESIDE))
_LIVE_TEXTS = _listed(_LIVE, "|")
_WAITING_STARTS = tuple(f"{start}{end}" for start in sorted(_listed(_WAITING, "|")) for end in ".。")
_SPLIT = re.compile(r"[\s\-‐‑]+")


def is_notice(text: str) -> bool:
    """Return whether WhatsApp wrote a text.

    Args:
        text: Text with its line breaks, each line without marks, case and trailing dot.
    """
    if "\n" in text:
        return _POLL.match(f"{text}\n") is not None or _is_poll(text.split("\n"))
    return (
        text in _LIVE_TEXTS
        or _is_call(text)
        or text.startswith(_WAITING_STARTS)
        or any(pattern.fullmatch(text) for pattern in (_DELETED_BY_ADMIN, _PLACE, _DURATION))
    )


def _is_call(text: str) -> bool:
    """Return whether a text has a word for a call, a word for "missed", and otherwise only words of such notices."""
    if _UNSPACED.fullmatch(text.replace(" ", "")):
        return True
    words = set(_SPLIT.split(text)) if len(text) <= 60 else set()
    return bool(words & _MISSED_WORDS and words & _CALL_WORDS) and words <= _MISSED_WORDS | _CALL_WORDS | _BESIDE_WORDS


def _is_poll(lines: list[str]) -> bool:
    """Return whether lines are a title, a question, and options with a common first word and their votes at the end."""
    options = [_OPTION.fullmatch(line) for line in lines[2:]]
    words = {option[1] for option in options if option is not None}
    alike = len(options) >= _FEWEST_OPTIONS and None not in options and len(words) == 1
    return alike and _TITLE.fullmatch(lines[0]) is not None
