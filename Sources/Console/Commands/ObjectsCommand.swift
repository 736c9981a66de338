// objects: memory objects, and the ranges that map them.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension CommandDescription {
  static var objects: CommandDescription {
    CommandDescription(
      name: "objects", usage: "objects [N] [-a]",
      about: """
        Memory objects: pages in memory, in swap, wired; of one object, the
        ranges that show it.
        """,
      example: "objects", question: .use,
      completion: .names(of: .objects))
  }
}

extension ObjectKind {
  /// The storage behind an object, as the console prints it.
  var description: StaticString {
    switch self {
    case .anonymous: "anonymous"
    case .device: "device"
    }
  }
}

extension PageDescription.Place {
  var description: StaticString {
    switch self {
    case .untouched: "never touched"
    case .resident: "in memory"
    case .cached: "cached"
    case .swapped: "in swap"
    case .onDevice: "on its device"
    }
  }
}

extension MemoryObject {
  /// `2 "dirty"`: the number that `objects` takes, and the name.
  var title: Line { "\(number) \"\(name)\"" }
}

extension Shell {

  func objects(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      try arguments.end()
      listObjects()
      return
    }
    let number = try arguments.number(word)
    try arguments.end()
    guard let object = UInt32(exactly: number).flatMap({ memory.paging.object(numbered: $0) }) else {
      throw refuse(word, "no object has this number; objects lists them")
    }
    describe(object)
  }

  func forEachObjectNumber(_ body: (Line) -> Void) {
    memory.paging.forEachObject { body("\($0.number)") }
  }

  private func listObjects() {
    let table = objectTable()
    var count: UInt64 = 0
    memory.paging.forEachObject { object in
      if shouldStop {
        _ = isStopped("Stopped. The list is not complete.")
        return
      }
      count += 1
      add(object, memory.paging.figures(of: object), to: table)
    }
    if count == 0 {
      print("There is no memory object yet. Type: dirty 10%")
      return
    }
    table.finish(total: "\(count: count, "object")")
    print("A page may be both in memory and in swap. objects N describes one.")
  }

  private func objectTable() -> Table {
    let table = table("object", .largestFirst)
    table.column("object", .text)
    table.column("name", .text)
    table.column("kind", .text, key: "backing")
    table.column("pages", .sum)
    table.column("bytes", .figure, for: .tools)
    table.column("in memory", .sum)
    table.column("cached", .sum)
    table.column("in swap", .sum)
    table.column("wired", .sum)
    table.column("held", .figure, for: .tools)
    table.column("busy", .figure, for: .tools)
    table.column("dirty", .figure, for: .tools)
    table.column("ranges", .sum)
    return table
  }

  private func add(_ object: MemoryObject, _ figures: ObjectFigures, to table: Table) {
    table.begin(weight: object.pageCount.rawValue)
    table.plain(UInt64(object.number))
    table.text("\(object.name)")
    table.text(object.kind.description)
    table.count(object.pageCount.rawValue)
    table.size(object.pageCount.bytes)
    table.count(figures.inMemory.rawValue)
    table.count(figures.cached.rawValue)
    table.count(figures.copies.rawValue)
    table.count(figures.wired.rawValue)
    table.count(figures.held.rawValue)
    table.count(figures.busy.rawValue)
    table.count(figures.dirty.rawValue)
    table.count(figures.ranges)
    table.end()
  }

  /// One object: its ranges, and where its pages are.
  private func describe(_ object: MemoryObject) {
    let figures = memory.paging.figures(of: object)
    // A person gets the same figures as sentences.
    if isJSON { add(object, figures, to: objectTable()) }
    print(
      "Object \(object.title): \(object.kind.description), \(count: object.pageCount.rawValue, "page"), \(object.pageCount.bytes)"
    )
    printRanges(of: object, figures.ranges)
    printPlaces(figures)
    print(
      "In memory: \(count: figures.dirty.rawValue) dirty, \(count: figures.wired.rawValue) wired, \(count: figures.held.rawValue) held, \(count: figures.busy.rawValue) busy. Copies in swap: \(count: figures.copies.rawValue)."
    )
  }

  private func printRanges(of object: MemoryObject, _ count: UInt64) {
    if count == 0 {
      print("No range maps it.")
      return
    }
    let table = table("range")
    table.column("range", .exact, key: "address")
    table.column("pages", .figure, for: .tools)
    table.column("size", .sum, key: "bytes")
    table.column("first page", .figure, for: .tools)
    table.column("maps pages", .text, for: .people)
    table.column("rights", .text)
    memory.paging.forEachRange { range in
      guard range.object == object.number else { return }
      table.begin()
      table.address(range.address)
      table.count(range.count.rawValue)
      table.size(range.count.bytes)
      table.count(range.offset.rawValue)
      table.text(
        "\(count: range.offset.rawValue) to \(count: range.offset.rawValue + range.count.rawValue - 1)")
      table.text(rights(range.protection))
      table.end()
    }
    table.finish(total: "\(count: count, "range")")
  }

  private func printPlaces(_ figures: ObjectFigures) {
    let table = table("place", .largestFirst)
    table.column("place", .text)
    table.column("pages", .sum)
    table.column("size", .sum, key: "bytes")
    table.column("share", .share)
    let whole =
      figures.inMemory + figures.cached + figures.inSwap + figures.onDevice + figures.untouched
    func add(_ place: PageDescription.Place, _ pages: PageCount) {
      table.begin(weight: pages.rawValue)
      table.text(place.description)
      table.count(pages.rawValue)
      table.size(pages.bytes)
      table.share(pages.rawValue, of: whole.rawValue)
      table.end()
    }
    add(.resident, figures.inMemory)
    add(.cached, figures.cached)
    add(.swapped, figures.inSwap)
    add(.onDevice, figures.onDevice)
    add(.untouched, figures.untouched)
    table.finish(total: "all pages")
  }
}
