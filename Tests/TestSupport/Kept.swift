/// Keeps a token that is used once where an array or a closure needs a value that can be copied.
public final class Kept<Token: ~Copyable>: @unchecked Sendable {
  private let place: UnsafeMutablePointer<Token>
  private var isHere = true

  public init(_ token: consuming Token) {
    place = .allocate(capacity: 1)
    place.initialize(to: token)
  }
  deinit {
    // A token that must be ended traps here.
    if isHere { place.deinitialize(count: 1) }
    place.deallocate()
  }

  /// The token, which stays here.
  public var value: Token {
    _read {
      precondition(isHere, "the token was moved out")
      yield place.pointee
    }
  }
  /// Moves the token out, once.
  public func move() -> Token {
    precondition(isHere, "the token was moved out before")
    isHere = false
    return place.move()
  }
}
