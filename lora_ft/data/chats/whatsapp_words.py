"""Removal of WhatsApp's own words from messages, in the languages of its exports.

iOS puts U+200E before its own words in every language; Android marks only some. Lists cover the rest, compiled from
public exports and their parsers. They hold whole texts (`_DELETED`, `_CALLS`), and stems of words between angle
brackets or after a mark (`_EDITED`, `_OMITTED`). A text that only mentions such words stays unchanged.
"""

from __future__ import annotations

import re
import unicodedata

from lora_ft.data.chats.whatsapp_notices import is_notice

MARK = "\u200e"
_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")

_DELETED = """
This message was deleted|You deleted this message|You deleted this message as admin|This message was deleted by admin
Diese Nachricht wurde gelöscht|Du hast diese Nachricht gelöscht|Diese Nachricht wurde von Admin gelöscht
Se eliminó este mensaje|Este mensaje fue eliminado|Eliminaste este mensaje|Has eliminado este mensaje
Mensagem apagada|Essa mensagem foi apagada|Esta mensagem foi apagada|Você apagou esta mensagem|Apagou esta mensagem
Apagaste esta mensagem|Esta mensagem foi eliminada|Eliminou esta mensagem|Eliminaste esta mensagem|Mensagem eliminada
Ce message a été supprimé|Vous avez supprimé ce message|Tu as supprimé ce message
Questo messaggio è stato eliminato|Hai eliminato questo messaggio
Dit bericht is verwijderd|Je hebt dit bericht verwijderd|U hebt dit bericht verwijderd
Pesan ini telah dihapus|Pesan ini dihapus|Anda telah menghapus pesan ini|Anda menghapus pesan ini
Mesej ini telah dipadam|Mesej ini telah dipadamkan|Anda telah memadam mesej ini|Anda memadamkan mesej ini
Bu mesaj silindi|Bu mesajı sildiniz|Bu mesaj silinib|Siz bu mesajı sildiniz|Bu xabar oʻchirildi
Данное сообщение удалено|Вы удалили данное сообщение|Это сообщение удалено|Это сообщение было удалено
Вы удалили это сообщение|Сообщение удалено|Це повідомлення було видалено|Це повідомлення видалено
Ви видалили це повідомлення|Това съобщение беше изтрито|Това съобщение е изтрито|Изтрихте това съобщение
Вие изтрихте това съобщение|Ова порука је обрисана|Обрисали сте ову поруку|Оваа порака беше избришана
Ја избришавте оваа порака|Бұл хабар жойылды|Сіз бұл хабарды жойдыңыз
Ta wiadomość została usunięta|Usunięto tę wiadomość|Usunąłeś tę wiadomość|Usunęłaś tę wiadomość|Wiadomość usunięta
Tato zpráva byla odstraněna|Tuto zprávu jste odstranili|Tato zpráva byla smazána|Tuto zprávu jste smazali
Táto správa bola odstránená|Odstránili ste túto správu|Táto správa bola vymazaná|Vymazali ste túto správu
Det här meddelandet togs bort|Det här meddelandet har tagits bort|Du tog bort det här meddelandet
Du har tagit bort det här meddelandet|Detta meddelande raderades|Du raderade detta meddelande
Denne besked blev slettet|Denne besked er slettet|Du slettede denne besked|Denne meldingen ble slettet
Du slettet denne meldingen|Tämä viesti poistettiin|Tämä viesti on poistettu|Poistit tämän viestin
Ezt az üzenetet törölték|Törölted ezt az üzenetet|Ez az üzenet törölve lett|Ez az üzenet törlésre került
Acest mesaj a fost șters|Ați șters acest mesaj|Ai șters acest mesaj
Αυτό το μήνυμα διαγράφηκε|Διαγράψατε αυτό το μήνυμα|Το μήνυμα διαγράφηκε|Διαγράψατε το μήνυμα
Ova poruka je izbrisana|Izbrisali ste ovu poruku|Ova poruka je obrisana|Obrisali ste ovu poruku
To sporočilo je bilo izbrisano|Izbrisali ste to sporočilo|Ši žinutė buvo ištrinta|Ši žinutė ištrinta
Ištrynėte šią žinutę|Šī ziņa tika dzēsta|Jūs dzēsāt šo ziņu|Šis ziņojums tika izdzēsts|Jūs izdzēsāt šo ziņojumu
See sõnum kustutati|Kustutasid selle sõnumi|Ky mesazh u fshi|Ju e fshitë këtë mesazh
S'ha eliminat aquest missatge|Aquest missatge s'ha eliminat|Heu eliminat aquest missatge|Has eliminat aquest missatge
הודעה זו נמחקה|ההודעה הזו נמחקה|ההודעה נמחקה|מחקת הודעה זו|מחקת את ההודעה הזו|מחקת את ההודעה
تم حذف هذه الرسالة|حذفت هذه الرسالة|لقد حذفت هذه الرسالة|قمت بحذف هذه الرسالة|أنت حذفت هذه الرسالة
این پیام حذف شد|این پیام حذف شده است|شما این پیام را حذف کردید|پیام حذف شد
یہ پیغام حذف کر دیا گیا|یہ پیغام حذف کیا گیا|آپ نے یہ پیغام حذف کر دیا|یہ میسج حذف کر دیا گیا ہے
यह मैसेज डिलीट कर दिया गया है|यह मैसेज डिलीट किया गया|आपने यह मैसेज डिलीट कर दिया है|आपने यह मैसेज डिलीट किया
यह संदेश मिटाया गया|आपने यह संदेश मिटाया|यह मैसेज मिटाया गया|यह मैसेज हटा दिया गया|हा मेसेज हटवण्यात आला
এই মেসেজটি মুছে ফেলা হয়েছে|আপনি এই মেসেজটি মুছে ফেলেছেন|এই বার্তাটি মুছে ফেলা হয়েছে
આ મેસેજ ડિલીટ કરવામાં આવ્યો છે|આ સંદેશ કાઢી નાખવામાં આવ્યો છે|இந்தச் செய்தி நீக்கப்பட்டது|ఈ సందేశం తొలగించబడింది
このメッセージは削除されました|このメッセージを削除しました|メッセージを削除しました|あなたはこのメッセージを削除しました
삭제된 메시지입니다|삭제한 메시지입니다|이 메시지는 삭제되었습니다|이 메시지가 삭제되었습니다|이 메시지를 삭제했습니다
此消息已被删除|此消息已删除|这条消息已被删除|您已删除此消息|你已删除此消息|你已删除这条消息|消息已删除|信息已删除
此訊息已刪除|此訊息已被刪除|這則訊息已被刪除|您已刪除此訊息|你已刪除此訊息|你刪除了這則訊息|您已刪除這則訊息|你已刪除這則訊息
Tin nhắn này đã bị xóa|Tin nhắn này đã bị xoá|Bạn đã xóa tin nhắn này|Bạn đã xoá tin nhắn này
ข้อความนี้ถูกลบ|ข้อความนี้ถูกลบแล้ว|คุณลบข้อความนี้|คุณลบข้อความนี้แล้ว|คุณได้ลบข้อความนี้
Você apagou essa mensagem|Borraste este mensaje|Se borró este mensaje|Este mensaje fue borrado|Ce message a été effacé
Questo messaggio è stato cancellato|Hai cancellato questo messaggio|你删除了这条消息|您删除了这条消息|这条消息已删除
該訊息已被刪除|यह मैसेज मिटा दिया गया था|यह मैसेज मिटा दिया गया|आपने यह मैसेज मिटा दिया|यह मैसेज हटाया गया|आपने यह मैसेज हटा दिया
इस मैसेज को हटा दिया गया|इस मैसेज को मिटा दिया गया
Binura ang mensaheng ito|Binura mo ang mensaheng ito|Ujumbe huu ulifutwa|Umefuta ujumbe huu
Hierdie boodskap is uitgevee|Jy het hierdie boodskap uitgevee
"""
_CALLS = """
null|Missed voice call|Missed video call|Missed group voice call|Missed group video call|Silenced voice call
Silenced video call|Waiting for this message|Waiting for this message. This may take a while
Live location shared|Message not supported|You received a view once message|Contact card omitted
You received a view once message. For added privacy, you can only open it on your phone
Verpasster Sprachanruf|Verpasster Videoanruf|Verpasster Gruppen-Sprachanruf|Verpasster Gruppen-Videoanruf
Verpasster Anruf|Live-Standort geteilt|Live-Standort wird geteilt
Warten auf diese Nachricht|Warte auf diese Nachricht
Llamada perdida|Llamada de voz perdida|Videollamada perdida|Llamada grupal perdida|Videollamada grupal perdida
Ubicación en tiempo real compartida|Se compartió la ubicación en tiempo real
Esperando este mensaje|Esperando el mensaje. Esto puede tomar tiempo
Chamada de voz perdida|Chamada de vídeo perdida|Chamada perdida|Ligação de voz perdida|Ligação de vídeo perdida
Ligação perdida|Aguardando mensagem
Localização em tempo real compartilhada|Localização em tempo real partilhada
Appel vocal manqué|Appel vidéo manqué|Appel manqué|Appel vocal de groupe manqué|Appel vidéo de groupe manqué
Localisation en direct partagée|Position en direct partagée|En attente de ce message
Chiamata vocale persa|Videochiamata persa|Chiamata video persa|Chiamata persa
Posizione in tempo reale condivisa|In attesa del messaggio
Gemiste spraakoproep|Gemiste video-oproep|Gemiste videooproep|Gemiste oproep
Live locatie gedeeld|Wachten op dit bericht
Panggilan suara tak terjawab|Panggilan video tak terjawab|Panggilan tak terjawab|Lokasi terkini dibagikan
Panggilan suara terlepas|Panggilan video terlepas|Panggilan suara tidak dijawab|Panggilan video tidak dijawab
Cevapsız sesli arama|Cevapsız görüntülü arama|Cevapsız arama|Canlı konum paylaşıldı
Пропущенный аудиозвонок|Пропущенный видеозвонок|Пропущенный голосовой вызов|Пропущенный видеовызов
Пропущенный звонок|Пропущений аудіодзвінок|Пропущений відеодзвінок
Пропущений голосовий виклик|Пропущений відеовиклик|Пропуснато гласово обаждане|Пропуснато видео обаждане
Nieodebrane połączenie głosowe|Nieodebrane połączenie wideo|Nieodebrane połączenie
Zmeškaný hlasový hovor|Zmeškaný videohovor|Zmeškaný hovor|Missat röstsamtal|Missat videosamtal
Ubesvart taleanrop|Ubesvart videoanrop|Ubesvaret taleopkald|Ubesvaret videoopkald|Mistet taleopkald|Mistet videoopkald
Vastaamaton äänipuhelu|Vastaamaton videopuhelu|Nem fogadott hanghívás|Nem fogadott videohívás
Apel vocal pierdut|Apel video pierdut|Propušteni glasovni poziv|Propušteni videopoziv|Propušten glasovni poziv
Αναπάντητη φωνητική κλήση|Αναπάντητη βιντεοκλήση|Αναπάντητη κλήση
שיחה קולית שלא נענתה|שיחת וידאו שלא נענתה|שיחה שלא נענתה
مكالمة صوتية فائتة|مكالمة فيديو فائتة|مكالمة فائتة|مكالمة صوتية لم يرد عليها|تماس صوتی از دست رفته
تماس تصویری از دست رفته|تماس تصویری بی‌پاسخ|تماس صوتی بی‌پاسخ
मिस्ड वॉइस कॉल|मिस्ड वीडियो कॉल|छूटी हुई वॉइस कॉल|छूटी हुई वीडियो कॉल
不在着信|ビデオ通話の不在着信|音声通話の不在着信|不在着信（音声）|不在着信（ビデオ）
부재중 음성통화|부재중 영상통화|부재중 음성 통화
未接语音通话|未接视频通话|未接語音通話|未接視訊通話|未接語音來電|未接視訊來電|未接来电|未接來電
Cuộc gọi thoại nhỡ|Cuộc gọi video nhỡ|Cuộc gọi nhỡ|สายเสียงที่ไม่ได้รับ|สายวิดีโอที่ไม่ได้รับ|สายที่ไม่ได้รับ
"""
# Stems of "edited": <This message was edited>.
_EDITED = re.compile(
    "edited|bearbeitet|edit[óo]|editad|modifi|bewerkt|diedit|disunting|düzenlendi|redaktə|измен|отредакт|редакт|змінен|"
    "edytowan|zmienion|upraven|redigera|redigere|muokat|szerkeszt|editat|επεξεργ|uređen|izmenjen|izmijenjen|urejen|"
    "redaguot|rediģēt|muudet|נערכה|עריכה|تعديل|ویرایش|ترمیم|संपादित|एडिट|সম্পাদ|এডিট|સંપાદિત|திருத்த|సవరించ|編集|编辑|編輯|수정|"
    "편집|chỉnh sửa|sửa|แก้ไข|inedit|na-edit|limehaririwa|gewysig|tahrirlan|өзгерт|өңделді",
    re.IGNORECASE,
)
# Stems of "omitted": image omitted. Only matched after a mark of iOS.
_OMITTED = re.compile(
    "omit|ocultad|weggelassen|ausgelassen|ausgeschlossen|omis|absent|retiré|omess|esclus|weggelaten|tidak disertakan|"
    "tidak dimasukkan|dahil edilmedi|отсутств|опущен|пропущ|исключ|відсутн|pominięt|vynech|utelämn|utelat|udelad|"
    "jätetty|kihagy|omise|izostav|παραλ|הושמט|محذوف|استبعاد|لم يتم|حذف|छोड़|हटा|"
    "省略|除外|忽略|略去|생략|bỏ qua|ไม่รวม|loại",
    re.IGNORECASE,
)
# Stems of "attached": notes.pdf (file attached).
_ATTACHED = re.compile(
    "attached|angehängt|adjunt|anexad|anexo|joint|allegato|bijgevoegd|terlampir|dilampirkan|ekl[ie]|файл|приклад|прикр|"
    "załącz|přilož|priložen|prilož|bifogad|vedhæft|vedlagt|liitetty|csatol|atașat|ataşat|επισυν|privitak|מצורף|مرفق|مرفوع|"
    "پیوست|ضمیمه|संलग्न|अटैच|সংযুক্ত|添付|附件|附加|첨부|đính kèm|แนบ|nakalakip",
    re.IGNORECASE,
)
# Words of lines about a group. Such a line with a colon and a text at its end looks like a sender's message.
_GROUP = re.compile(
    "group description|the subject|the community|Gruppenbeschreibung|Betreff|Gruppennamen|Community|"
    "descripción del grupo|el asunto|la comunidad|descrição do grupo|o assunto|nome do grupo|comunidade|"
    "description du groupe|l'objet|le sujet|nom du groupe|communauté|descrizione del gruppo|l'oggetto|"
    "groepsbeschrijving|groepsomschrijving|onderwerp|deskripsi grup|subjek|komunitas|komuniti|açıklamasını|"
    "konuyu|topluluğ|описание группы|тему группы|название группы|сообществ|опис групи|тему групи|спільнот|"
    "описанието на група|opis grupy|temat grupy|społecznoś|popis skupiny|komunit|gruppbeskrivning|"
    "gruppebeskrivelse|ryhmän kuvau|yhteisö|csoportleírás|csoport leírás|közösség|descrierea grupului|"
    "comunităț|περιγραφή της ομάδας|κοινότητα|תיאור הקבוצה|קהיל|وصف المجموعة|المجتمع|توضیحات گروه|انجمن|ग्रुप|"
    "कम्युनिटी|mô tả nhóm|cộng đồng"
)
_GROUP_UNSPACED = re.compile(
    "グループの説明|グループ名|コミュニティ|그룹 설명|그룹 이름|커뮤니티|群组描述|群组名称|社群|群組說明|"
    "群組名稱|คำอธิบายกลุ่ม|ชุมชน"
)
_FEWEST_WORDS = 4  # minimum words of a sentence
_STANDARD_FILE = re.compile(r"(?:IMG|VID|AUD|PTT|STK|DOC)-\d+-WA\d+\.\w+ \([^()\n]+\)")
_NAMED_FILE = re.compile(r"[^\n]{1,250}\.\w{1,5} \(([^()\n]{3,60})\)")
# <Media omitted>, not <html>
_OMITTED_MEDIA = re.compile(r"<(?=[^<>]{0,80}(?: |[^\x00-\x7f]))[^\W\d_][^<>\n=/\"]{2,80}>")
_PLACEHOLDER = re.compile(r"<[^\W\d_][^<>\n]{2,80}>")
# iOS puts a mark before its own words in every language. People's texts have one before a pasted number or link.
_STARTS_MARKED = re.compile(
    f"[\u200f\u202a ]*{MARK}(?![\\s{MARK}\u200f\u202a\u202c\u2066-\u2069]*(?:[\\d+@#]|https?:))"
)
_DOCUMENT = re.compile(f"[^\n{MARK}]+? • {MARK}[^\n]*")
_FILE = re.compile(r"[^\n]{1,250}\.\w{1,5}")


def _normal(text: str) -> str:
    """Return a text without marks, case and trailing dot."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFC", text)).replace("’", "'")
    return " ".join(plain.casefold().split()).rstrip(" .。।")


_WHOLE = frozenset(_normal(text) for text in f"{_DELETED}|{_CALLS}".replace("\n", "|").split("|") if text)


def is_about_group(name: str) -> bool:
    """Return whether the words before a colon begin a line about a group or community."""
    long = len(name.split()) >= _FEWEST_WORDS
    return (long and _GROUP.search(name) is not None) or _GROUP_UNSPACED.search(name) is not None


def written(text: str, *, ios: bool) -> str:
    """Return the part of a message's text that a person wrote, with marks, or "" if WhatsApp wrote all of it.

    Args:
        text: Text of a message, after the sender.
        ios: True for an export from iOS, which marks WhatsApp's own words.
    """
    if _is_own(text):
        return ""
    *earlier, end = text.split("\n")
    lines = [*(_without_tail(line, last=False) for line in earlier), _without_tail(end, last=True)]
    if _is_attachment(lines[0]):
        lines = lines[1:]
    elif ios and _STARTS_MARKED.match(lines[0]):
        return ""
    return "\n".join(lines)


def _is_own(text: str) -> bool:
    plain = _INVISIBLE.sub("", text).strip()
    return (
        _normal(text) in _WHOLE
        or _PLACEHOLDER.fullmatch(plain) is not None
        or is_notice("\n".join(map(_normal, plain.split("\n"))))
    )


def _is_attachment(line: str) -> bool:
    """Return whether a line names an attachment or says that it was omitted. Its caption is on later lines."""
    plain = _INVISIBLE.sub("", line).strip()
    if _STANDARD_FILE.fullmatch(plain) or _OMITTED_MEDIA.fullmatch(plain) or _DOCUMENT.fullmatch(line):
        return True
    named = _NAMED_FILE.fullmatch(plain)
    return named is not None and (line.startswith(MARK) or _ATTACHED.search(named[1]) is not None)


def _without_tail(line: str, *, last: bool) -> str:
    """Return a line without `<This message was edited>`, `<attached: …>` or `image omitted` at its end.

    Args:
        line: Line of a text.
        last: True for the last line of the text, where Android puts its word for edited messages.
    """
    stripped = line.rstrip()
    start = stripped.rfind("<") if stripped.endswith(">") else -1
    if start >= 0 and not stripped[:start].endswith(MARK) and not (last and _is_edited(stripped[start + 1 : -1])):
        start = -1
    if start < 0:
        start = stripped.rfind(MARK)
        if start < 0 or len(stripped) - start > 60 or not _OMITTED.search(stripped, start):
            return line
    beginning = stripped[:start].rstrip(f"{MARK} \u00a0")
    return "" if " • " in beginning and _FILE.fullmatch(beginning.partition(" • ")[0]) else beginning


def _is_edited(words: str) -> bool:
    whole = " " in words or not words.isascii()
    return whole and len(words) <= 80 and _EDITED.search(words) is not None
