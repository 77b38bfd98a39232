"""Write more training rows for the recipe clinical-fhir: invented notes, and the FHIR resources that they state.

    python -m benchmarks.clinical_notes [--rows 1600] [--seed 0]

Rows with a number below `FIRST` stay, as do the validation and test rows. The others are replaced.
No person occurs twice in any split. The wordings, names and values are those of the written rows and as many more, so
that a model learns to copy and to convert rather than to remember.
"""

from __future__ import annotations

import calendar
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.command import run_command
from lora_ft.core.files import write_text

FOLDER = Path(__file__).parents[1] / "lora_ft" / "recipes" / "clinical-fhir"
SPLITS = ("train", "validation", "test")
FIRST = 101
"""Number of the first generated row of each kind. The written ones have 1 to 72."""

_TERMS = "http://terminology.hl7.org/CodeSystem"
_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class Writer:
    """Writes notes about one person after another.

    Args:
        seed: Seed of all choices.
        taken: Full names that must not occur.
    """

    def __init__(self, seed: int, taken: set[str]) -> None:
        self.random = random.Random(seed)
        self._taken = set(taken)
        self.given_name = self.family_name = self.sex = ""

    @property
    def name(self) -> str:
        """Full name of the person."""
        return f"{self.given_name} {self.family_name}"

    def next_person(self) -> None:
        """Choose somebody of whom there is no note yet."""
        while not self.sex or self.name in self._taken:
            self.sex = self.one(["female", "male"])
            self.given_name = self.one(_WORDS["given_names"][self.sex])
            self.family_name = self.one(_WORDS["family_names"])
        self._taken.add(self.name)

    def one(self, choices: Any) -> Any:
        """Return one of the choices."""
        return self.random.choice(list(choices))

    def often(self, share: float) -> bool:
        """Return True in this share of the calls."""
        return self.random.random() < share

    def date(self, first: int, last: int) -> tuple[str, str]:
        """Return a date between two years in a note's spelling, and in ISO 8601."""
        year, month = self.random.randint(first, last), self.random.randint(1, 12)
        day = self.random.randint(1, 28 if month == 2 else calendar.monthrange(year, month)[1])
        names = [calendar.month_name[month], calendar.month_abbr[month]]
        iso, name = f"{year}-{month:02}-{day:02}", self.one(names)
        comma = "," if name == names[0] else ""
        return self.one([iso, f"{day} {name} {year}", f"{name} {day}{comma} {year}"]), iso

    def allergy(self) -> tuple[str, dict[str, Any]]:
        category = self.one(_WORDS["substances"])
        substance, severity = self.one(_WORDS["substances"][category]), self.one(["", "mild", "moderate", "severe"])
        reactions = self.random.sample(_WORDS["reactions"], 2 if self.often(0.3) else 1)
        what = " and ".join(f"a {reaction}" if reaction == "rash" else reaction for reaction in reactions)
        how = f"{severity} {what}".strip()
        name, they = self.name, "She" if self.sex == "female" else "He"
        note = self.one(
            [
                f"{name} is allergic to {substance}: {how}.",
                f"ALLERGY\nPatient: {name}\nSubstance: {substance}\nReaction: {how}",
                f"Reaction to {substance} in {name}, {how}.",
                f"{name} gets {how} from {substance}.",
                f"Allergies ({name}): {substance} - {how}",
                f"Known allergy to {substance} with {how}; patient {name}.",
                f"Allergic to {substance}: {name}. Reaction: {how}.",
                f"{name} had {how} after exposure to {substance}.",
                f"{name} reports an allergy to {substance}. {they} had {how}.",
                f"{name}, allergy list: {substance} ({how})",
            ]
        )
        high = severity == "severe" or "anaphylaxis" in reactions
        reaction: dict[str, Any] = {
            "manifestation": [{"text": reaction.removeprefix("a ")} for reaction in reactions]
        } | ({"severity": severity} if severity else {})
        return note, {
            "resourceType": "AllergyIntolerance",
            "clinicalStatus": _coding(f"{_TERMS}/allergyintolerance-clinical", "active"),
            "category": [category],
            "criticality": "high" if high else "low",
            "code": {"text": substance},
            "patient": {"display": name},
            "reaction": [reaction],
        }

    def condition(self) -> tuple[str, dict[str, Any]]:
        condition, severity = self.one(_WORDS["conditions"]), self.one(["", "mild", "moderate", "severe"])
        (date, iso), name, what = self.date(2012, 2025), self.name, f"{severity} {condition}".strip()
        status, notes = self.one(
            [
                (
                    "active",
                    [
                        f"{name} has {what}, onset {date}.",
                        f"Assessment: {what} in {name}, first noted {date}.",
                        f"Problem list of {name}\n- {what} (since {date})",
                        f"Dx {date}: {what}. Patient: {name}. Ongoing.",
                        f"{name} was diagnosed with {what} on {date} and is still being treated.",
                        f"Active problem: {what}, {name}, since {date}.",
                        f"Patient {name}\nDiagnosis {what}\nOnset {date}\nStatus active",
                    ],
                ),
                (
                    "remission",
                    [
                        f"{name}: {what}, onset {date}, now in remission.",
                        f"In remission: {what} of {name}, which began {date}.",
                        f"The {what} of {name} (onset {date}) is in remission.",
                    ],
                ),
                (
                    "resolved",
                    [
                        f"History of {what} in {name}, began {date}, now resolved.",
                        f"{name} had {what} from {date}; it has resolved.",
                        f"Resolved: {what}, {name}, onset {date}.",
                        f"{name} recovered from {what}, which began on {date}.",
                    ],
                ),
            ]
        )
        return self.one(notes), {
            "resourceType": "Condition",
            "clinicalStatus": _coding(f"{_TERMS}/condition-clinical", status),
            **({"severity": {"text": severity}} if severity else {}),
            "code": {"text": condition},
            "subject": {"display": name},
            "onsetDateTime": iso,
        }

    def immunization(self) -> tuple[str, dict[str, Any]]:
        kind, (date, iso), name = self.one(_WORDS["vaccines"]), self.date(2021, 2025), self.name
        vaccine, done = self.one(kind["names"]), self.often(0.8)
        site = self.one(["left arm", "right arm"]) if done and self.often(0.5) else ""
        lot = f"{self.one('ABKLRTX')}{self.random.randint(100, 9999)}" if done and self.often(0.4) else ""
        rest = "".join([site and f", {site}", lot and f", lot {lot}"])
        lines = "".join([site and f"\nSite: {site}", lot and f"\nLot: {lot}"])
        administered = [
            f"{date}: {vaccine} administered to {name}{rest}.",
            f"Immunized {name} today ({date}) with {vaccine}{rest}.",
            f"Gave {name} the {vaccine} on {date}{rest}.",
            f"{name} received {vaccine} {date}{rest}.",
            f"Vaccine: {vaccine}\nPatient: {name}\nDate: {date}{lines}",
            f"{name} was vaccinated on {date}: {vaccine}{rest}.",
            f"IMMUNIZATION {date}\n{name}\n{vaccine}{lines}",
        ]
        refused = [
            f"{date}: {vaccine} not given to {name}, refused.",
            f"{name} declined the {vaccine} on {date}.",
            f"{name} did not want the {vaccine} ({date}), not given.",
        ]
        return self.one(administered if done else refused), {
            "resourceType": "Immunization",
            "status": "completed" if done else "not-done",
            "vaccineCode": _coding("http://hl7.org/fhir/sid/cvx", kind["code"], kind["display"]),
            "patient": {"display": name},
            "occurrenceDateTime": iso,
            **({"lotNumber": lot} if lot else {}),
            **({"site": {"text": site}} if site else {}),
        }

    def observation(self) -> tuple[str, dict[str, Any]]:
        kind = self.one(_WORDS["measures"])
        (date, iso), name, measure = self.date(2023, 2025), self.name, self.one(kind["names"])
        value = round(self.random.uniform(*kind["range"]), kind["digits"] or None)
        spelling = self.one(kind["spellings"])
        comparator = self.one("<>") if self.often(0.2) else ""
        result, preliminary = f"{comparator}{value}{spelling}", self.often(0.15)
        upper = measure[0].upper() + measure[1:]
        note = self.one(
            [
                f"{name}: {measure} {result} on {date}.",
                f"Seen {date}. {name}'s {measure} was {result}.",
                f"Patient {name}\nDate {date}\n{measure}: {result}",
                f"{date}: {name}, {measure} {result}.",
                f"{upper} of {name} measured {result} on {date}.",
                f"{date} - {measure} {result} ({name})",
                f"{upper} {result}, {name}, {date}.",
                f"On {date} {name} had {measure} {result}.",
                f"Result for {name} ({date}): {measure} {result}",
            ]
        )
        return (self.one(["Preliminary: ", "Prelim result. "]) if preliminary else "") + note, {
            "resourceType": "Observation",
            "status": "preliminary" if preliminary else "final",
            "code": _coding("http://loinc.org", kind["code"], kind["display"]),
            "subject": {"display": name},
            "effectiveDateTime": iso,
            "valueQuantity": {
                "value": value,
                **({"comparator": comparator} if comparator else {}),
                "unit": kind["unit"],
            },
        }

    def patient(self) -> tuple[str, dict[str, Any]]:
        (date, iso), female, name = self.date(1935, 2019), self.sex == "female", self.name
        sex, they = self.one(["F", "female", "woman"] if female else ["M", "male", "man"]), "She" if female else "He"
        city = self.one(_WORDS["cities"]) if self.often(0.55) else ""
        phone = f"555-01{self.random.randint(0, 99):02}" if self.often(0.45) else ""
        part = lambda before, text, after="": f"{before}{text}{after}" if text else ""  # noqa: E731
        note = self.one(
            [
                f"Pt {name} {sex} DOB {date}{part(' tel ', phone)}{part(' ', city)}",
                f"Name: {name}\nSex: {sex[0].upper() if sex in ('F', 'M') else sex}\nDOB: {date}"
                f"{part(chr(10) + 'Phone: ', phone)}{part(chr(10) + 'City: ', city)}",
                f"{name} is a {self.one(['new', 'referred', 'walk-in'])} patient. {they} was born on {date}"
                f"{part(' and lives in ', city)}.{part(' Tel ', phone, '.')}",
                f"New patient {name}, {sex}, born {date}.{part(' Lives in ', city, '.')}"
                f"{part(' Reach at ', phone, '.')}",
                f"{self.one(['Registered', 'Registering', 'Admitted'])} {self.family_name}, {self.given_name} ({sex}), "
                f"date of birth {date}{part(', of ', city)}{part(', phone ', phone)}.",
                f"{self.family_name}, {self.given_name}\n{sex}, born {date}{part(chr(10), city)}{part(chr(10), phone)}",
                f"Please add {name} ({sex}, {date}){part(' from ', city)}{part(', phone ', phone)}.",
            ]
        )
        return note, {
            "resourceType": "Patient",
            "name": [{"family": self.family_name, "given": [self.given_name]}],
            "gender": self.sex,
            "birthDate": iso,
            **({"telecom": [{"system": "phone", "value": phone}]} if phone else {}),
            **({"address": [{"city": city}]} if city else {}),
        }

    def request(self) -> tuple[str, dict[str, Any]]:
        drug, dose, often, dosage = self._dosage()
        (date, iso), name = self.date(2023, 2025), self.name
        count = self.random.randint(1, 5) if self.often(0.4) else 0
        refills = ["", f" Refills: {count}.", f" {count} refill{'s' if count > 1 else ''}."]
        rest = self.one(refills[1:]) if count else ""
        note = self.one(
            [
                f"Rx for {name}\n{drug} {dose}\n{often}\n{date}{rest.replace(' ', chr(10), 1)}",
                f"Start {name} on {drug} {dose} {often}, ordered {date}.{rest}",
                f"I am prescribing {name} {drug}, {dose} {often}, as of {date}.{rest}",
                f"New script {date}. {name}: {drug} {dose} {often}.{rest}",
                f"Plan for {name}, {date}: {drug} {dose} {often}.{rest}",
                f"{date}: prescribed {drug} {dose} {often} to {name}.{rest}",
                f"{name} should take {drug} {dose} {often} (ordered {date}).{rest}",
                f"Order {date}: {drug} {dose} {often} for {name}.{rest}",
            ]
        )
        return note, {
            "resourceType": "MedicationRequest",
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": {"text": drug},
            "subject": {"display": name},
            "authoredOn": iso,
            "dosageInstruction": [dosage],
            **({"dispenseRequest": {"numberOfRepeatsAllowed": count}} if count else {}),
        }

    def statement(self) -> tuple[str, dict[str, Any]]:
        drug, dose, often, dosage = self._dosage()
        (date, iso), name, stopped = self.date(2020, 2025), self.name, self.often(0.35)
        they = "she" if self.sex == "female" else "he"
        taken = [
            f"{name} reports taking {drug} {dose} {often} since {date}.",
            f"{name} says {they} takes {drug} {dose} {often}; began {date}.",
            f"Home meds, {name}: {drug} {dose} {often} (since {date}).",
            f"Medication history\n{name}\n- {drug} {dose} {often}, from {date}",
            f"Since {date} {name} has been on {drug} {dose} {often}.",
            f"Current medication of {name}: {drug} {dose} {often}, started {date}",
        ]
        ended = [
            f"{name} no longer takes {drug}. {they.capitalize()} took {dose} {often} until {date}.",
            f"{drug.capitalize()} {dose} {often} was stopped by {name} on {date}.",
            f"{name} stopped {drug} {dose} {often} on {date}.",
            f"Past medication of {name}: {drug} {dose} {often}, ended {date}",
        ]
        return self.one(ended if stopped else taken), {
            "resourceType": "MedicationStatement",
            "status": "stopped" if stopped else "active",
            "medicationCodeableConcept": {"text": drug},
            "subject": {"display": name},
            "effectivePeriod": {"end" if stopped else "start": iso},
            "dosage": [dosage],
        }

    def _dosage(self) -> tuple[str, str, str, dict[str, Any]]:
        """Return a drug, its dose and how often it is taken, in a note's words, and FHIR's dosage."""
        drug = self.one(_WORDS["drugs"])
        unit, *doses = _WORDS["drugs"][drug]
        dose, how = self.one(doses), self.one(_WORDS["frequencies"])
        often, needed = self.one(how["words"]), drug in _WORDS["as_needed"] and self.often(0.5)
        frequency, period, span = how["repeat"]
        if drug in _WORDS["weekly"]:
            often, (frequency, period, span) = self.one(["weekly", "once a week", "every week"]), (1, 1, "wk")
        return (
            drug,
            f"{dose} {unit}",
            often + (self.one([" PRN", " as needed"]) if needed else ""),
            {
                "timing": {"repeat": {"frequency": frequency, "period": period, "periodUnit": span}},
                **({"asNeededBoolean": True} if needed else {}),
                "doseAndRate": [{"doseQuantity": {"value": dose, "unit": unit}}],
            },
        )


def _coding(system: str, code: str, display: str = "") -> dict[str, Any]:
    return {"coding": [{"system": system, **({"display": display} if display else {}), "code": code}]}


def person(resource: dict[str, Any]) -> str:
    """Return the full name of the person whom a resource is about."""
    if resource["resourceType"] == "Patient":
        return f"{resource['name'][0]['given'][0]} {resource['name'][0]['family']}"
    return str((resource.get("subject") or resource["patient"])["display"])


def generated(count: int, seed: int, taken: set[str]) -> Iterator[dict[str, Any]]:
    """Yield rows, the kinds in turn.

    Args:
        count: Number of rows.
        seed: Seed of all choices.
        taken: Full names that must not occur.
    """
    writer = Writer(seed, taken)
    kinds: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
        "allergy": writer.allergy,
        "condition": writer.condition,
        "immunization": writer.immunization,
        "observation": writer.observation,
        "patient": writer.patient,
        "request": writer.request,
        "statement": writer.statement,
    }
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        writer.next_person()
        note, resource = kinds[kind]()
        yield {"id": f"{kind}-{FIRST + number // len(kinds)}", "note": note, "resource": resource}


def _main(
    rows: Annotated[int, typer.Option(help="Number of rows to generate.")] = 1600,
    seed: Annotated[int, typer.Option(help="Seed of all choices.")] = 0,
    folder: Annotated[Path, typer.Option(help="Folder of the recipe's rows.")] = FOLDER,
) -> None:
    """Replace the generated rows of train.jsonl."""
    splits = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")] for name in SPLITS}
    written = [row for row in splits["train"] if int(row["id"].split("-")[1]) < FIRST]
    people = {person(row["resource"]) for row in (*written, *splits["validation"], *splits["test"])}
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (*written, *generated(rows, seed, people))]
    write_text(folder / "train.jsonl", "".join(lines))


if __name__ == "__main__":
    run_command(_main)
