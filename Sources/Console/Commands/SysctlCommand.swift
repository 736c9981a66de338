// sysctl: the tree of statistics and tunables.

import CPlatform
import KernelMemory
import MemoryPrimitives

extension CommandDescription {
  static var sysctl: CommandDescription {
    CommandDescription(
      name: "sysctl", usage: "sysctl [-v] [NAME | PREFIX | NAME=VALUE]",
      about: """
        Tunables and statistics, one tree of names: shows them, or sets one.
        -v shows what each tunable can be set to.
        """,
      example: "sysctl vm", question: .tuning, entry: "sysctl NAME=VALUE",
      completion: .names(of: .statistics))
  }
}

extension Shell {
  var statistics: Statistics { memory.statistics }

  private func hasPrefix(_ name: Line, _ prefix: Bytes) -> Bool {
    guard prefix.count <= name.count else { return false }
    for i in 0..<prefix.count where name[i] != prefix[i] { return false }
    return prefix.count == name.count || prefix.count == 0 || name[prefix.count] == UInt8(ascii: ".")
      || prefix[prefix.count - 1] == UInt8(ascii: ".")
  }
  private func hasPrefix(_ name: StaticString, _ prefix: Bytes) -> Bool { hasPrefix(Line(name), prefix) }

  func figure(named name: Bytes) -> Statistic? {
    for i in 0..<statistics.count where name == statistics[i].name { return statistics[i] }
    var found: Statistic?
    statistics.forEachMember { row in
      if found == nil && row.fullName.withBytes({ $0 == name }) { found = row }
    }
    return found
  }

  private func noFigure(_ word: Word, _ name: Bytes) -> CommandError {
    var typed = Line()
    typed.append(bytes: name)
    var best = 4
    var near: StaticString?
    for i in 0..<statistics.count {
      let text = statistics[i].name
      let distance = slips(name, Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount), limit: best)
      if distance < best {
        best = distance
        near = text
      }
    }
    for i in 0..<statistics.count where name.count >= 3 {
      let text = statistics[i].name
      guard text.utf8CodeUnitCount > name.count,
        Bytes(start: text.utf8Start, count: name.count) == name
      else { continue }
      near = text
      break
    }
    if let near { return refuse("No tunable \"\(typed)\". Did you mean \(near)?") }
    return refuse("No tunable \"\(typed)\". sysctl lists all.")
  }

  func sysctl(_ arguments: Arguments) throws(CommandError) {
    let detail: Detail = arguments.takeFlag("-v") ? .ranges : .names
    guard let word = arguments.nextOfAnyForm() else {
      figures(detail) { $0.member == nil || $0.value != 0 }
      return
    }
    try arguments.end()
    if let equals = word.bytes.firstIndex(of: UInt8(ascii: "=")) {
      let name = Bytes(rebasing: word.bytes[0..<equals])
      guard let row = figure(named: name) else { throw noFigure(word, name) }
      try set(row, arguments.part(of: word, from: equals + 1))
      return
    }
    var found = false
    for i in 0..<statistics.count where hasPrefix(statistics[i].name, word.bytes) { found = true }
    statistics.forEachMember { row in if hasPrefix(row.fullName, word.bytes) { found = true } }
    guard found else { throw noFigure(word, word.bytes) }
    // Of a family those that are set, unless it is named.
    figures(detail) { row in
      let isShown = row.member == nil || row.value != 0 || word.bytes.count >= row.name.utf8CodeUnitCount
      return isShown && hasPrefix(row.fullName, word.bytes)
    }
  }

  /// Whether the table says what each tunable can be set to.
  private enum Detail { case names, ranges }

  private func figures(_ detail: Detail, where wanted: (Statistic) -> Bool) {
    let table = table("sysctl")
    table.column("name", .exact)
    table.column("value", .figure)
    table.column("unit", .text)
    // Marks a tunable.
    if detail == .names { table.column("=", .text, for: .people) }
    if detail == .ranges { table.column("= takes", .exact, for: .people) }
    table.column("what it does", .text, key: "about")
    table.column("settable", .text, for: .tools)
    table.column("choices", .text, for: .tools)
    table.column("minimum", .figure, for: .tools)
    table.column("maximum", .figure, for: .tools)
    var hasTunable = false
    func show(_ row: Statistic) {
      guard wanted(row) else { return }
      table.begin()
      table.text(row.fullName)
      let value = row.value
      switch row.unit {
      case .choice, .switchOnOff: table.text(spelled(value, row))
      case .bytes, .pages, .requests, .objects, .tags, .events, .steps, .ticks, .cycles, .processors,
        .passes:
        table.count(value)
      }
      table.text(unit(of: row))
      if row.kind == .tunable {
        hasTunable = true
        if detail == .names { table.text("=") } else { table.text(acceptedValues(of: row)) }
      } else {
        table.empty()
      }
      table.text(row.about)
      table.truth(row.kind == .tunable ? .yes : .no)
      if hasWords(row) { table.text(unit(of: row)) } else { table.none() }
      if row.kind == .tunable && !hasWords(row) {
        table.plain(row.range.lowerBound)
        table.plain(row.range.upperBound)
      } else {
        table.none()
        table.none()
      }
      table.end()
    }
    for i in 0..<statistics.count { show(statistics[i]) }
    statistics.forEachMember(show)
    table.finish()
    guard hasTunable else { return }
    if detail == .ranges {
      print("What has a value below \"takes\" is a tunable, as in: sysctl vm.contig.passes=4")
    } else {
      print("A name with = is a tunable: sysctl vm.contig.passes=4. -v shows what it takes.")
    }
  }

  /// Whether the values of a row have words.
  private func hasWords(_ row: Statistic) -> Bool { row.unit == .choice || row.unit == .switchOnOff }

  /// The values that a tunable takes.
  private func acceptedValues(of row: Statistic) -> Line {
    if hasWords(row) { return unit(of: row) }
    let range = row.range
    return range.upperBound == .max
      ? "\(count: range.lowerBound) or more"
      : "\(count: range.lowerBound) to \(count: range.upperBound)"
  }

  private func unit(of row: Statistic) -> Line {
    switch row.unit {
    case .bytes: "bytes"
    case .pages: "pages"
    case .requests: "requests"
    case .objects: "objects"
    case .tags: "tags"
    case .events: "events"
    case .ticks: "ticks"
    case .steps: "steps"
    case .cycles: Line(costUnit)
    case .processors: "processors"
    case .passes: "passes"
    case .switchOnOff: "on|off"
    case .choice: row.choices.map { Line($0) } ?? "choice"
    }
  }

  /// A value as the word that stands for it, or its digits.
  private func spelled(_ value: UInt64, _ row: Statistic) -> Line {
    if row.unit == .switchOnOff { return value == 0 ? "off" : "on" }
    guard row.unit == .choice, let choices = row.choices else { return "\(value)" }
    var found: Line = "\(value)"
    forEachChoice(choices) { number, word in
      guard number == value else { return }
      found = Line()
      found.append(bytes: word)
    }
    return found
  }

  private func forEachChoice(_ choices: StaticString, _ body: (UInt64, Bytes) -> Void) {
    let bytes = Bytes(start: choices.utf8Start, count: choices.utf8CodeUnitCount)
    var from = 0
    var number: UInt64 = 0
    for i in 0...bytes.count where i == bytes.count || bytes[i] == UInt8(ascii: "|") {
      body(number, Bytes(rebasing: bytes[from..<i]))
      from = i + 1
      number += 1
    }
  }

  private func set(_ row: Statistic, _ word: Word) throws(CommandError) {
    guard row.kind == .tunable else {
      throw refuse("\(row.name) is a statistic, which is read only.")
    }
    let before = row.value
    var wanted: UInt64?
    if row.unit == .switchOnOff {
      if word.bytes == "on" || word.bytes == "1" { wanted = 1 }
      if word.bytes == "off" || word.bytes == "0" { wanted = 0 }
    } else if row.unit == .choice, let choices = row.choices {
      forEachChoice(choices) { number, choice in if choice == word.bytes { wanted = number } }
    } else if row.unit == .bytes {
      wanted = try Arguments(self).size(word).rawValue
    } else {
      wanted = try Arguments(self).number(word)
    }
    guard let wanted else {
      throw refuse(
        "No value \"\(word.line)\" for \(row.fullName): \(unit(of: row)). It stays \(spelled(before, row)).")
    }
    switch row.set(wanted) {
    case .accepted:
      if isJSON {
        figures(.names) { $0.name.utf8Start == row.name.utf8Start && $0.member == row.member }
      } else {
        print("\(row.fullName): \(spelled(before, row)) -> \(spelled(row.value, row))")
      }
    case .out_of_range:
      throw refuse(
        "\(word.line) is out of range: \(row.fullName) takes \(acceptedValues(of: row)) \(unit(of: row)). It stays \(spelled(before, row))."
      )
    case .read_only:
      throw refuse("\(row.name) is a statistic, which is read only.")
    }
  }

  /// Sets the tunables of the kernel's command line, and prints those that it could not set. False when there was
  /// one.
  func setTunables(of line: KernelCommandLine) -> Bool {
    var fine = true
    line.forEachWord { name, value in
      if KernelCommandLine.isForBoot(name) { return }
      var typed = Line()
      typed.append(bytes: name)
      if value != nil && figure(named: name) != nil {
        typed = "sysctl \(typed)="
        if let value { typed.append(bytes: value) }
        if typed.withBytes({ run($0) }) != nil { fine = false }
      } else {
        print("The kernel's command line has \"\(typed)\", which is no tunable.")
        fine = false
      }
    }
    return fine
  }
}
