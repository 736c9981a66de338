// objects: memory objects, and the ranges that map them.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

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
  private static var objectsUsage: StaticString { "objects [N] [-a]" }

  func objects(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      try arguments.end(Self.objectsUsage)
      listObjects()
      return
    }
    let number = try arguments.number(word)
    try arguments.end(Self.objectsUsage)
    guard let object = UInt32(exactly: number).flatMap({ memory.paging.object(numbered: $0) }) else {
      throw refuse(word, "no object has this number; objects lists them")
    }
    describe(object)
  }

  func forEachObjectNumber(_ body: (Line) -> Void) {
    memory.paging.forEachObject { body("\($0.number)") }
  }

  private func listObjects() {
    if isJSON {
      memory.paging.forEachObject { if !shouldStop { printRow($0, memory.paging.figures(of: $0)) } }
      return
    }
    let table = table("object", .largestFirst)
    table.column("object", .text)
    table.column("name", .text)
    table.column("kind", .text)
    table.column("pages", .sum)
    table.column("in memory", .sum)
    table.column("cached", .sum)
    table.column("in swap", .sum)
    table.column("wired", .sum)
    table.column("ranges", .sum)
    var count: UInt64 = 0
    memory.paging.forEachObject { object in
      if shouldStop { return }
      count += 1
      let figures = memory.paging.figures(of: object)
      table.begin(weight: object.pageCount.rawValue)
      table.plain(UInt64(object.number))
      table.text("\(object.name)")
      table.text(object.kind.description)
      table.count(object.pageCount.rawValue)
      table.count(figures.inMemory.rawValue)
      table.count(figures.cached.rawValue)
      table.count(figures.copies.rawValue)
      table.count(figures.wired.rawValue)
      table.count(figures.ranges)
      table.end()
    }
    if count == 0 {
      print("There is no memory object yet. Type: dirty 10%")
      return
    }
    table.finish(total: "\(count: count, "object")")
    print("A page may be both in memory and in swap. objects N describes one.")
  }

  /// Prints the JSON row of an object.
  private func printRow(_ object: MemoryObject, _ figures: ObjectFigures) {
    row("object") { row in
      row.field("object", UInt64(object.number))
      row.field("name", text: "\(object.name)")
      row.field("backing", text: Line(object.kind.description))
      row.field("pages", object.pageCount.rawValue)
      row.field("bytes", object.pageCount.bytes.rawValue)
      row.field("in_memory", figures.inMemory.rawValue)
      row.field("cached", figures.cached.rawValue)
      row.field("in_swap", figures.copies.rawValue)
      row.field("wired", figures.wired.rawValue)
      row.field("held", figures.held.rawValue)
      row.field("busy", figures.busy.rawValue)
      row.field("dirty", figures.dirty.rawValue)
      row.field("ranges", figures.ranges)
    }
  }

  /// One object: its ranges, and where its pages are.
  private func describe(_ object: MemoryObject) {
    let figures = memory.paging.figures(of: object)
    if isJSON {
      printRow(object, figures)
    } else {
      print(
        "Object \(object.title): \(object.kind.description), \(count: object.pageCount.rawValue, "page"), \(object.pageCount.bytes)"
      )
    }
    printRanges(of: object, figures.ranges)
    printPlaces(figures)
    guard !isJSON else { return }
    print(
      "In memory: \(count: figures.dirty.rawValue) dirty, \(count: figures.wired.rawValue) wired, \(count: figures.held.rawValue) held, \(count: figures.busy.rawValue) busy. Copies in swap: \(count: figures.copies.rawValue)."
    )
  }

  private func printRanges(of object: MemoryObject, _ count: UInt64) {
    if count == 0 {
      if !isJSON { print("No range maps it.") }
      return
    }
    if isJSON {
      memory.paging.forEachRange { range in
        guard range.object == object.number else { return }
        row("range") { row in
          row.field("address", range.address)
          row.field("pages", range.count.rawValue)
          row.field("bytes", range.count.bytes.rawValue)
          row.field("first_page", range.offset.rawValue)
          row.field("rights", text: Line(rights(range.protection)))
        }
      }
      return
    }
    let table = table("range")
    table.column("range", .text)
    table.column("size", .sum)
    table.column("maps pages", .text)
    table.column("rights", .text)
    memory.paging.forEachRange { range in
      guard range.object == object.number else { return }
      table.begin()
      table.text("\(range.address)")
      table.size(range.count.bytes)
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
