"""Which paid answers become training rows. Pure functions; the engine has already refused empty and broken ones."""

import re
from dataclasses import dataclass

ENGLISH = r"""
    (?:i\ am|i['’]m|my)\ (?:very\ |so\ |truly\ |really\ |sincere\ )?(?:sorry|afraid|apologies)\b[^.!?\n]{0,60}
    \b(?:can(?:no|['’])t|unable|not\ (?:able|comfortable|allowed|permitted)|won['’]t|something\ i\ can)
  | (?:sorry|apologies|unfortunately|i\ apologi[sz]e)\b[^.!?\n]{0,40}\bi(?:['’]m|\ am)?\ 
    (?:can(?:no|['’])t|unable|not\ able|won['’]t|do(?:n['’]t|\ not)\ have\ (?:access|the\ ability))
  | (?:i\ understand|i\ appreciate)\b[^.!?\n]{0,80},\ but\ i\ (?:can(?:no|['’])t|won['’]t|am\ (?:unable|not\ able))
  | i\ (?:can(?:no|['’])t|can\ not|won['’]t|will\ not)\ (?:\w+ly\ |in\ good\ conscience\ )?
    (?:help(?!\ but|\ (?:feeling|thinking|noticing|wondering))|assist|provide|comply|fulfil|answer|create|write
      |generate|discuss|engage|support|participate|produce|offer|respond|do\ (?:that|this)
      |give\ (?:you|out|legal|medical|financial)|share\ (?:that|this|any|personal|information)
      |(?:access|browse|open|view)\ (?:\w+\ )?(?:internet|web|links?|urls?|files?|images?|websites?|attachments?|data))
  | i\ (?:must|have\ to|will\ have\ to|['’]ll\ have\ to)\ (?:respectfully\ |politely\ )?(?:decline|refuse)\b
  | (?:i\ am|i['’]m)\ (?:unable|not\ able|not\ comfortable|not\ allowed|not\ permitted)\b
  | i\ do(?:n['’]t|\ not)\ feel\ comfortable\b
  | as\ an?\ (?:ai|artificial\ intelligence|(?:large\ )?language\ model)\b[^.!?\n]{0,80}
    \b(?:can(?:no|['’])t|unable|not\ able|don['’]t|do\ not|not\ (?:capable|programmed))
"""
OTHERS = r"""
  | (?:es\ tut\ mir\ (?:sehr\ )?leid|entschuldigung|leider|tut\ mir\ leid)\b[^.!?\n]{0,60}\b(?:kann|darf)\ ich\b
    [^.!?\n]{0,80}\b(?:nicht|keine?n?)\b
  | (?:es\ )?tut\ mir\ (?:sehr\ )?leid\b[^.!?\n]{0,20}\bich\ (?:kann|darf)\b[^.!?\n]{0,80}\b(?:nicht|keine?n?)\b
  | ich\ (?:kann|darf|werde)\ (?:\w+\ ){0,4}?(?:nicht|keine?n?)\b[^.!?\n]{0,60}
    \b(?:helfen|weiterhelfen|unterstützen|beantworten|bereitstellen|erstellen|schreiben)
  | (?:je\ suis\ (?:vraiment\ |sincèrement\ )?)?(?:désolée?|navrée?|malheureusement)\b[^.!?\n]{0,40}
    \b(?:je|nous)\ ne\ (?:peux|suis|pouvons)\b
  | je\ ne\ (?:peux|suis)\ pas\ (?:en\ mesure\ d['’]|capable\ d['’]|vous\ |t['’])?
    (?:aider|assister|fournir|répondre|créer|écrire)
  | (?:lo\ siento|lamentablemente|disculpa|perdón|me\ temo)\b[^.!?\n]{0,40}\bno\ (?:puedo|podemos|me\ es\ posible)\b
  | no\ puedo\ (?:ayudar|proporcionar|responder|cumplir|asistir|crear|generar|escribir|ofrecer)
  | (?:desculpe|sinto\ muito|lamento|infelizmente)\b[^.!?\n]{0,40}\bnão\ (?:posso|consigo)\b
  | (?:mi\ dispiace|purtroppo|spiacente)\b[^.!?\n]{0,40}\bnon\ (?:posso|sono\ in\ grado)\b
  | (?:извините|простите|к\ сожалению|мне\ жаль)\b[^.!?\n]{0,40}\bя\ не\ (?:могу|смогу)\b
  | (?:非常|很|十分)?(?:抱歉|对不起|對不起|遗憾|遺憾)[^。！？\n]{0,20}(?:无法|無法|不能|不可以|没有办法)
  | 我(?:无法|無法|不能)(?:为您|为你|為您|向您|直接)?(?:提供|帮助|幫助|协助|協助|回答|满足|生成|撰写)
  | (?:大変)?(?:申し訳|恐れ入り|すみません|残念ながら)[^。！？\n]{0,60}
    (?:できません|できかねます|いたしかねます|お答えでき)
  | (?:정말\ )?(?:죄송|미안|유감)[^.!?。\n]{0,60}(?:수\ 없|불가|어렵습니다)
"""
REFUSAL = re.compile(rf"^\W*+(?:(?:no|nein|non|não|нет)\b[,.!]\ )?(?:{ENGLISH}{OTHERS})", re.IGNORECASE | re.VERBOSE)
"""How a refusal begins: in English, and in the usual phrases of nine other languages. A heuristic: `check_data` and a
reader's eye are needed for the rest."""


@dataclass(frozen=True)
class Filters:
    """Whether an answer is kept. Loosening them later takes rejected answers back in without asking again."""

    min_chars: int = 0
    drop_truncated: bool = True
    drop_refusals: bool = False

    def reject(self, text: str, finish_reason: str, refusal: str = "") -> str | None:
        """Why an answer is not kept ("truncated", "too_short", "refusal"), or None. Text in characters."""
        if self.drop_truncated and finish_reason == "length":
            return "truncated"
        if len(text.strip()) < self.min_chars:
            return "too_short"
        if self.drop_refusals and (refusal or REFUSAL.match(text)):
            return "refusal"
        return None
