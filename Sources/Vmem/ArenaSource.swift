// Where an arena gets spans from when it has no room, and where they go when they are wholly free: two C
// functions with a context, or another arena.
//
// The source is asked with no lock held and is told the constraints of the request that caused the
// import, so that what it gives satisfies that request. (illumos imports for no constrained request,
// NetBSD ignores the window, FreeBSD asks for more and hopes.)

import MemoryPrimitives

/// What an arena asks of its source, in the words of `xalloc`.
public struct ImportRequest {
  public var size: ArenaSize
  public var constraints: ArenaConstraints
  public var priority: AllocationPriority
  /// Who asked the arena.
  public var site: CallSite
  /// The answer, to be filled in: first and last value of the span.
  public var first: ArenaAddress = .lowest
  public var last: ArenaAddress = .lowest

  init(_ request: Request, extent: UInt64, priority: AllocationPriority, site: CallSite) {
    size = ArenaSize(extent + 1)
    constraints = ArenaConstraints(
      alignment: Alignment(request.alignment) ?? .byte, phase: ArenaSize(request.phase),
      nocross: Alignment(request.nocross), minimum: ArenaAddress(request.minimum),
      maximum: ArenaAddress(request.maximum))
    self.priority = priority
    self.site = site
  }
}

/// The import and release functions of an arena.
public struct ArenaSource {
  let context: UnsafeMutableRawPointer?
  let importing: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Bool
  let releasing: @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> Void

  /// `importing` gets the context and an `ImportRequest` by address, fills in the answer and tells
  /// whether there is one. The span may be larger than asked; it overlaps no other of the arena's.
  /// `releasing` gets the context and the first and last value of a span that came from `importing`; it
  /// can't fail.
  public init(
    _ context: UnsafeMutableRawPointer?,
    importing: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Bool,
    releasing: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> Void
  ) {
    self.context = context
    self.importing = importing
    self.releasing = releasing
  }

  /// Imports from another arena, which must outlive this one.
  public static func arena(_ parent: Arena) -> ArenaSource {
    ArenaSource(
      UnsafeMutableRawPointer(parent.state),
      importing: { context, request in
        guard let context else { return false }
        let request = request.assumingMemoryBound(to: ImportRequest.self)
        return Arena(state: context.assumingMemoryBound(to: ArenaState.self)).give(request)
      },
      releasing: { context, first, last in
        guard let context else { return }
        Arena(state: context.assumingMemoryBound(to: ArenaState.self)).takeBack(first, last)
      })
  }

  func take(_ request: ImportRequest) -> (start: UInt64, last: UInt64)? {
    assert(holdsNoSpinLock(), "an import with a spin lock held")
    var request = request
    let isGranted = withUnsafeMutablePointer(to: &request) { importing(context, UnsafeMutableRawPointer($0)) }
    guard isGranted, request.first <= request.last else { return nil }
    return (request.first.rawValue, request.last.rawValue)
  }

  func release(_ start: UInt64, _ last: UInt64) {
    assert(holdsNoSpinLock(), "a release with a spin lock held")
    releasing(context, start, last)
  }
}

extension Arena {
  /// Allocates what another arena wants to import. Its quantum may be smaller than this one's: then what the
  /// phase is above this quantum is asked for as size, and the segment lies so far inside the span.
  func give(_ request: UnsafeMutablePointer<ImportRequest>) -> Bool {
    let quantum = state.pointee.quantum
    var size = request.pointee.size
    var constraints = request.pointee.constraints
    let inset = constraints.phase.rawValue & (quantum - 1)
    if inset != 0 {
      let larger = size.rawValue.addingReportingOverflow(inset)
      guard !larger.overflow else { return false }
      size = ArenaSize(larger.partialValue)
      constraints.phase = ArenaSize(constraints.phase.rawValue - inset)
      if constraints.minimum.rawValue != 0 {
        constraints.minimum = ArenaAddress(
          constraints.minimum.rawValue > inset ? constraints.minimum.rawValue - inset : 0)
      }
    }
    // A window ends where the segment ends; what rounding adds may lie beyond.
    let rounding = ((size.rawValue - 1) | (quantum - 1)) - (size.rawValue - 1)
    let (end, isBeyond) = constraints.maximum.rawValue.addingReportingOverflow(rounding)
    constraints.maximum = isBeyond ? .highest : ArenaAddress(end)
    if let nocross = constraints.nocross, nocross.rawValue < quantum { constraints.nocross = nil }
    do {
      let first = try xalloc(
        size, constraints, policy: .instantFit, priority: request.pointee.priority, at: request.pointee.site)
      request.pointee.first = first
      request.pointee.last = ArenaAddress(first.rawValue + ((size.rawValue - 1) | (quantum - 1)))
      return true
    } catch {
      return false
    }
  }

  func takeBack(_ first: UInt64, _ last: UInt64) {
    xfree(ArenaAddress(first), ArenaSize(last - first + 1))
  }
}
